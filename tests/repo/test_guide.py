"""The guide is true: its Python runs, its commands print what the page says they print, its files are read.

On a page, blocks run from top to bottom in one folder and one namespace. `toml file=NAME` (or csv) writes that file;
`console` holds commands after "$ ", each followed by texts that its output contains in that order; "; exit N" says the
exit code.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator import catalog
from simulator.cli import run as shardwise
from simulator.cli.app import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "guide").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXIT = re.compile(r" ; exit (\d)$")


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """(language, file name, text) of every block of a page."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield match[1], match[2] or "", match[3]


def commands(text: str) -> Iterator[tuple[list[str], int, list[str]]]:
    """(arguments, exit code, texts that the output contains) of every command of a console block."""
    for part in text.split("$ shardwise ")[1:]:
        line, *expected = part.rstrip().split("\n")
        code = EXIT.search(line)
        yield shlex.split(EXIT.sub("", line)), int(code[1]) if code else 0, expected


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the page's own; catalogues that it adds are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    before = list(catalog._extra)
    yield tmp_path
    catalog._extra[:] = before


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"ROOT": ROOT, "__name__": "page"}
    for language, file, text in blocks(page):
        if file:
            (workplace / file).parent.mkdir(parents=True, exist_ok=True)
            (workplace / file).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, f"{page.name}", "exec"), names)
        else:
            assert language == "console", f"{page.name}: what is done with a block of {language}?"
            for arguments, code, expected in commands(text):
                capsys.readouterr()
                assert shardwise(arguments) == code, (arguments, capsys.readouterr())
                captured = capsys.readouterr()
                rest = captured.out + captured.err
                for piece in expected:
                    assert piece in rest, f"{arguments}: {piece!r} is not in (what is left of)\n{rest}"
                    rest = rest[rest.index(piece) + len(piece) :]


def test_the_guide_is_whole() -> None:
    index = (ROOT / "docs" / "guide" / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((\S+?)\.md\)", index))
    assert {page.stem for page in PAGES} - {"README"} <= linked
    assert {"add-a-model", "add-a-device", "add-a-cluster", "add-a-schedule"} <= linked


def test_every_command_is_on_a_page() -> None:
    pages = [*PAGES, ROOT / "docs" / "explorer.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    shown = set(re.findall(r"shardwise (?:--catalog \w+ )?([a-z]+)", text))
    assert set(COMMANDS) - shown == set()


def test_the_formula_pages_are_current() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tools'); import make_formula_pages as m\n"
        "stale = [str(p) for p, text in m.pages().items() if not p.is_file() or p.read_text('utf-8') != text]\n"
        "sys.exit('python tools/make_formula_pages.py; stale: ' + ', '.join(stale) if stale else None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
