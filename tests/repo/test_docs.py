"""Links in the docs lead somewhere, and the commands that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PAGES = (
    "README.md", "GLOSSARY.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/architecture.md",
)  # fmt: skip


def _pages(root: Path) -> list[Path]:
    folders = ("docs", "models", "hardware", "frameworks", "notebooks", "benchmarks", "validation")
    return sorted([*root.glob("*.md"), *(page for folder in folders for page in (root / folder).rglob("*.md"))])


def _anchor(heading: str) -> str:
    """The anchor that forges give a heading: lower case, punctuation dropped, blanks to dashes."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _anchors(text: str) -> set[str]:
    return {_anchor(heading) for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)}


def test_the_pages_that_every_project_owes_its_readers_are_there(root: Path) -> None:
    assert [page for page in (*PAGES, "LICENSE") if not (root / page).is_file()] == []


def test_links_between_pages_lead_somewhere(root: Path) -> None:
    dead = []
    for page in _pages(root):
        text = page.read_text(encoding="utf-8")
        for link in LINK.findall(FENCE.sub("", text)):
            if re.match(r"[a-z]+:", link):
                continue
            place, _, anchor = link.partition("#")
            target = (page.parent / place).resolve() if place else page
            if not target.exists():
                dead.append(f"{page.relative_to(root)}: {link}")
            elif anchor and anchor not in _anchors(target.read_text(encoding="utf-8")):
                dead.append(f"{page.relative_to(root)}: {link} (no such heading)")
    assert not dead


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_named_in_a_page_exist(page: str, root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", (root / page).read_text(encoding="utf-8")))
    named |= set(re.findall(r"^ *make ([a-z-]+)", (root / page).read_text(encoding="utf-8"), re.MULTILINE))
    assert named
    assert named <= targets


def test_files_named_in_the_architecture_page_exist(root: Path) -> None:
    text = FENCE.sub("", (root / "docs" / "architecture.md").read_text(encoding="utf-8"))
    named = re.findall(r"`((?:simulator|tests|tools|docs)/[\w./-]+\.\w+)`", text)
    assert named
    assert [name for name in named if not (root / name).exists()] == []


def test_the_glossary_gives_each_word_one_meaning_in_order(root: Path) -> None:
    text = (root / "GLOSSARY.md").read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        words = [word for row in re.findall(r"^\*\*(.+?)\*\*", section, re.MULTILINE) for word in row.split(", ")]
        heading = section.partition("\n")[0]
        assert words, f"the section {heading!r} defines nothing"
        assert len(words) == len(set(words)), f"a word has two entries under {heading!r}"
    every = [word for row in re.findall(r"^\*\*(.+?)\*\*", text, re.MULTILINE) for word in row.split(", ")]
    assert len(every) == len(set(every)), sorted(word for word in every if every.count(word) > 1)
