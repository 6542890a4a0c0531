"""The README shows what `make run` prints, to the letter."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SHOWN = re.compile(r"<!-- output: make run -->\n+```text\n(.*?)```\n+<!-- /output -->", re.DOTALL)


@pytest.fixture(scope="module")
def command(root: Path) -> list[str]:
    """The arguments of shardwise in the recipe of `make run`."""
    makefile = (root / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    recipe = re.search(r"^run:.*\n\t\$\(BIN\)/shardwise (.+)$", makefile, re.MULTILINE)
    assert recipe, "make run calls $(BIN)/shardwise"
    return shlex.split(recipe[1])


def _timeless(text: str) -> str:
    """Without how long the search took, which no two runs share."""
    return re.sub(r"\bin\s[0-9.]+ m?s\b", "in some time", text)


def test_the_output_shown_is_the_output(command: list[str], root: Path) -> None:
    shown = SHOWN.search((root / "README.md").read_text(encoding="utf-8"))
    assert shown, "README.md has the output of `make run` as a text block between its two marks"
    done = subprocess.run(
        [sys.executable, "-m", "simulator", *command],
        cwd=root,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
    same = _timeless(shown[1].strip("\n")) == _timeless(printed)
    assert same, f"README.md shows an older output; the new one:\n{printed}"
