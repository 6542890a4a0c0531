"""The line of every key of a TOML text, and the refusal of texts that are expensive to parse.

A linear scan beside `tomllib` (which checks the grammar but tells no positions). Where the text is not TOML the scan
just stops: the parser then says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

KeyPath = tuple[str | int, ...]
MAX_DEPTH = 32
MAX_DOTS = 16
"""tomllib takes quadratic time on dotted keys: 20,000 parts cost 4 s of CPU."""

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|'
    r"'''.*?'{3,5}|"
    r'"(?!"")(?:\\[^\n]|[^"\\\n])*"|'
    r"'(?!'')[^'\n]*'|"
    r"#[^\n]*|\n|[ \t\r]+|[\[\]{}=,.]|[^\s\[\]{}=,.\"'#]+|.",
    re.DOTALL,
)


class TooDeep(Exception):
    """Nesting or dots beyond the limits, at `line`."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class _Stop(Exception):
    """The text is not TOML from here on."""


def key_lines(text: str) -> dict[KeyPath, int]:
    """Maps each key path, ("tiers", 0, "name"), to the line (from 1) where it is set.

    Raises TooDeep when brackets nest beyond 32 or a key has more than 16 dots.
    """
    scan = _Scan(text)
    with suppress(_Stop):
        scan.document()
    return scan.lines


class _Scan:
    """One pass over the tokens of a text."""

    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.line = 1
        self._counts: dict[KeyPath, int] = {}
        self._table: KeyPath = ()
        self._words = self._significant(text)
        self._ahead = next(self._words, "")

    def _significant(self, text: str) -> Iterator[str]:
        """Words without blanks and comments; `line` is that of the word last taken."""
        passed = 0
        for match in _TOKEN.finditer(text):
            word = match.group()
            self.line += passed
            passed = word.count("\n")
            if word in ('"', "'"):
                return
            if word[0] not in " \t\r#":
                yield word

    def _take(self) -> str:
        word, self._ahead = self._ahead, next(self._words, "")
        return word

    def _skip_newlines(self) -> None:
        while self._ahead == "\n":
            self._take()

    def document(self) -> None:
        while self._ahead:
            if self._ahead == "\n":
                self._take()
            elif self._ahead == "[":
                self._header()
            else:
                self._pair(self._table, 0)

    def _header(self) -> None:
        self._take()
        many = self._ahead == "["
        if many:
            self._take()
        line = self.line
        parts = self._key("]")
        path: KeyPath = ()
        for part in parts[:-1]:
            path = self._note((*path, part), line)
            if path in self._counts:
                path = (*path, self._counts[path] - 1)
        path = self._note((*path, parts[-1]), line)
        if many:
            self._take()
            self._counts[path] = self._counts.get(path, 0) + 1
            path = self._note((*path, self._counts[path] - 1), line)
        self._table = path

    def _note(self, path: KeyPath, line: int) -> KeyPath:
        self.lines.setdefault(path, line)
        return path

    def _key(self, end: str) -> list[str]:
        """Parts of a dotted key up to the word `end`, which is taken too."""
        parts: list[str] = []
        line = self.line
        while self._ahead and self._ahead not in (end, "\n"):
            word = self._take()
            if word == ".":
                continue
            parts.append(word[1:-1] if word[0] in "\"'" else word)
            if len(parts) > MAX_DOTS + 1:
                raise TooDeep(f"a key has more than {MAX_DOTS} dots.", line)
        if self._take() != end or not parts:
            raise _Stop
        return parts

    def _pair(self, table: KeyPath, depth: int) -> None:
        line = self.line
        path = table
        for part in self._key("="):
            path = self._note((*path, part), line)
        self._value(path, depth)

    def _value(self, path: KeyPath, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise TooDeep(f"brackets nest deeper than {MAX_DEPTH}.", self.line)
        if self._ahead == "[":
            self._take()
            self._items(path, depth)
        elif self._ahead == "{":
            self._take()
            self._inline(path, depth)
        else:
            while self._ahead and self._ahead not in ("\n", ",", "]", "}"):
                self._take()

    def _items(self, path: KeyPath, depth: int) -> None:
        index = 0
        self._skip_newlines()
        while self._ahead != "]":
            self._value(self._note((*path, index), self.line), depth + 1)
            index += 1
            self._separator("]")
        self._take()

    def _inline(self, path: KeyPath, depth: int) -> None:
        self._skip_newlines()
        while self._ahead != "}":
            self._pair(path, depth + 1)
            self._separator("}")
        self._take()

    def _separator(self, end: str) -> None:
        self._skip_newlines()
        if self._ahead == ",":
            self._take()
            self._skip_newlines()
        elif self._ahead != end:
            raise _Stop
