"""Reading TOML: the line of every key, and an answer to any text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.spec.reading import Document, parse_document, read_document

ROOT = Path(__file__).parents[3]
FILES = [*sorted((ROOT / "hardware").rglob("*.toml")), *sorted((ROOT / "frameworks").rglob("*.toml"))]

TRICKY = '''# a comment with [brackets] and key = 1
"quoted.key" = 1
a.b.c = """
[not.a.table]
key = "inside a string"
"""
list = [ # comment ]
  1,
  { x = 1, y = [2,
    3] },
]
last = \'\'\'x\'\'\'
[[t]]
n = 1
[[t.u]]
v = 1
[[t.u]]
v = 2
[[t]]
[t.u]
v = 3
'''


def keys_of(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key path of a table."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from keys_of(item, (*path, key))


def test_lines_of_a_tricky_text() -> None:
    """Counted by hand: strings and comments that look like TOML, nested arrays, tables of arrays of tables."""
    document = parse_document(TRICKY, "tricky.toml")
    expected = {
        ("quoted.key",): 2, ("a",): 3, ("a", "b"): 3, ("a", "b", "c"): 3, ("list",): 7, ("list", 0): 8, ("list", 1): 9,
        ("list", 1, "x"): 9, ("list", 1, "y"): 9, ("list", 1, "y", 0): 9, ("list", 1, "y", 1): 10, ("last",): 12,
        ("t",): 13, ("t", 0): 13, ("t", 0, "n"): 14, ("t", 0, "u"): 15, ("t", 0, "u", 0): 15, ("t", 0, "u", 0, "v"): 16,
        ("t", 0, "u", 1): 17, ("t", 0, "u", 1, "v"): 18, ("t", 1): 19, ("t", 1, "u"): 20, ("t", 1, "u", "v"): 21,
    }  # fmt: skip
    assert dict(document.lines) == expected
    assert set(keys_of(document.table)) == set(expected)


def test_where_falls_back_to_the_nearest_parent() -> None:
    """A missing key is looked for in its table."""
    document = parse_document(TRICKY, "tricky.toml")
    assert document.where("t.0.missing") == "tricky.toml:13"
    assert document.where("nothing.at.all") == "tricky.toml:1"


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_key_of_the_catalogue_has_its_line(file: Path) -> None:
    """tomllib's keys and the scan's are the same, and each key stands on its line."""
    document = read_document(file)
    text = file.read_text(encoding="utf-8").splitlines()
    assert set(document.lines) == set(keys_of(document.table))
    assert all(key[-1] in text[line - 1] for key, line in document.lines.items() if isinstance(key[-1], str))


PIECES = st.lists(
    st.sampled_from(
        ["a", "b.c", "=", " ", "\n", "[", "]", "[[", "]]", "{", "}", ",", '"', "'", '"""', "'''", "#", "\\", "1", "1.5",
         "nan", "1e999", "2026-01-01", "true", ".", "\t", "\r\n", "\x00", "\u00e9", "99999999999999999999"]
    ),
    max_size=60,
)  # fmt: skip


@given(st.one_of(PIECES.map("".join), st.text(max_size=200)))
def test_any_text_is_answered(text: str) -> None:
    """A document whose keys all have lines, or an InputError that names the file."""
    try:
        document = parse_document(text.replace("\r\n", "\n"), "any.toml")
    except InputError as error:
        document = Document("any.toml", {})
        shown = str(error)
    else:
        shown = "any.toml"
    assert shown.startswith("any.toml")
    assert set(keys_of(document.table)) <= set(document.lines)
