"""What a framework's file says: every setting under a dotted key, with its place, from flags, TOML, JSON or YAML.

Nothing is executed and nothing is looked up outside the text. A reader asks for the settings it knows; what nobody
asked for is refused where it is near a known key or known to change the cost, and listed otherwise.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from simulator.errors import Complaints, InputError, Problem, did_you_mean
from simulator.spec.reading import parse_document

MAX_TEXT = 1_000_000
"""Characters of a configuration that are read; real ones have a few thousand."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting: its value as written (text, number, truth, list), and "file:line"."""

    value: Any
    where: str


@dataclass(frozen=True, slots=True)
class Said:
    """The settings of one file by dotted key. Questions collect their problems; `finish` raises them all."""

    entries: Mapping[str, Entry]
    broken: Complaints = field(default_factory=Complaints)
    asked: set[str] = field(default_factory=set)

    def get(self, key: str) -> Any:
        """The value as written; None where the file does not say it."""
        self.asked.add(key)
        return self.entries[key].value if key in self.entries else None

    def where(self, key: str) -> str:
        """The place of a setting, "file:line"."""
        return self.entries[key].where if key in self.entries else ""

    def bad(self, key: str, message: str, hint: str = "") -> None:
        """A problem with a setting; one that is told already is not told again."""
        problem = Problem(f"{key}: {message}", self.where(key), hint)
        if problem not in self.broken.problems:
            self.broken.problems.append(problem)

    def count(self, key: str, default: int = 0, *, low: int = 1) -> int:
        """A whole number of at least `low`; `default` where it is not said, or null."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 2**53:
            self.bad(key, f"needs a whole number of at least {low}, not {_shown(value)}.")
            return default
        return value

    def number(self, key: str) -> float | None:
        """A finite number, or None where it is not said."""
        value = self.get(key)
        if value is None:
            return None
        try:
            found = float(value) if not isinstance(value, bool | list | dict) else float("nan")
        except ValueError:
            found = float("nan")
        if not abs(found) < float("inf"):
            self.bad(key, f"needs a number, not {_shown(value)}.")
            return None
        return found

    def truth(self, key: str, default: bool = False) -> bool:
        """True or false; a flag that stands alone is true."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, str) and value.lower() in ("", "true", "false"):
            value = value.lower() != "false"
        if not isinstance(value, bool):
            self.bad(key, f"needs true or false, not {_shown(value)}.")
            return default
        return value

    def choice(self, key: str, meanings: Mapping[str, Value], default: Value) -> Value:
        """The meaning of one of several words."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in meanings:
            self.bad(key, f"{_shown(value)} is not read.", did_you_mean(str(value), meanings))
            return default
        return meanings[value]

    def words(self, key: str) -> tuple[str, ...]:
        """A list of words: a list of the file, or text with blanks or commas between them."""
        value = self.get(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return tuple(value.replace(",", " ").split())
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        self.bad(key, f"needs a list of words, not {_shown(value)}.")
        return ()

    def finish(self, costly: Mapping[str, str], *, silent: Callable[[str], bool] | None = None) -> list[str]:
        """Raises InputError with every problem so far, and for settings that nobody asked for: those of `costly`
        (key -> what it changes), and those that nearly spell a known key. Returns a note that lists the rest.
        """
        left = [key for key in self.entries if key not in self.asked and not (silent and silent(key))]
        for key in left:
            if key in costly:
                self.bad(key, f"changes the cost and is not read: {costly[key]}")
                continue
            near = did_you_mean(key, _unsaid(self.asked, self.entries)) if len(key) > 3 else ""
            if near.startswith("Did") and _alike(key, near[len("Did you mean ") : -1]):
                self.bad(key, "is unknown.", near)
        self.broken.problems.sort(key=lambda problem: _line_of(problem.where))
        self.broken.raise_if_any()
        rest = [key for key in left if key not in costly]
        return [f"not read, taken as without effect on the cost: {', '.join(rest)}."] if rest else []


def _line_of(where: str) -> float:
    line = where.rpartition(":")[2]
    return int(line) if line.isdecimal() else float("inf")


def _unsaid(asked: Iterable[str], entries: Mapping[str, Entry]) -> list[str]:
    """Known keys that the file does not have: what a misspelt one may have meant."""
    return [key for key in asked if key not in entries]


def _alike(key: str, known: str) -> bool:
    """True for a slip of the pen (one part of the name differs by two letters at most), false for another name."""
    parts, others = re.split(r"[-_.]", key), re.split(r"[-_.]", known)
    if len(parts) != len(others):
        return key.replace("-", "").replace("_", "") == known.replace("-", "").replace("_", "")
    wrong = [(part, other) for part, other in zip(parts, others, strict=True) if part != other]
    return len(wrong) == 1 and _edits(*wrong[0]) <= 2 < len(wrong[0][1])


def _edits(one: str, other: str) -> int:
    """Levenshtein distance of two words."""
    row = list(range(len(other) + 1))
    for index, letter in enumerate(one, start=1):
        before, row[0] = row[0], index
        for place, wanted in enumerate(other, start=1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (letter != wanted))
    return row[-1]


def _shown(value: object) -> str:
    text = repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def said_in_flags(text: str, path: str) -> Said:
    """Command-line flags ("--name", "--name value ...", "--name=value"), one or several a line, with # comments.

    A flag said twice counts as last said, as argparse has it. Raises InputError for text that is no list of flags.
    """
    _check_size(text, path)
    broken = Complaints()
    entries: dict[str, Entry] = {}
    last = ""
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            words = shlex.split(line.rstrip().removesuffix("\\"), comments=True)
        except ValueError as error:
            broken.add(f"not a line of flags: {error}.", where=where)
            continue
        for word in words:
            if word.startswith("--") and len(word) > 2:
                last, equals, value = word[2:].partition("=")
                entries[last] = Entry(value if equals else "", where)
            elif last:
                before = entries[last]
                entries[last] = Entry(f"{before.value} {word}".strip(), before.where)
            else:
                broken.add(f"{_shown(word)} stands before the first flag.", where=where)
    broken.raise_if_any()
    return Said(entries)


def said_in_toml(text: str, path: str) -> Said:
    """TOML tables as dotted keys. Raises InputError as `parse_document` does."""
    document = parse_document(text, path)
    return Said({key: Entry(value, document.where(parts)) for key, parts, value in _leaves(document.table, ())})


def said_in_json(text: str, path: str) -> Said:
    """A JSON object as dotted keys. Raises InputError where the text is not JSON or no object."""
    table = parse_json(text, path)
    return Said({key: Entry(value, json_place(text, path, parts)) for key, parts, value in _leaves(table, ())})


def parse_json(text: str, path: str) -> dict[str, Any]:
    """The object of a JSON text. Raises InputError where it is not JSON, not finite, too deep or no object."""
    _check_size(text, path)
    try:
        table = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InputError([Problem(f"not valid JSON: {error.msg}.", f"{path}:{error.lineno}")]) from None
    except (ValueError, RecursionError) as error:
        raise InputError([Problem(f"not valid JSON: {str(error).splitlines()[0]}.", path)]) from None
    if not isinstance(table, dict):
        raise InputError([Problem("must be a JSON object.", path)])
    return table


def json_place(text: str, path: str, parts: tuple[str, ...]) -> str:
    """The "file:line" of a key: the first that stands after its parents' (JSON's parser tells no positions)."""
    at = 0
    for part in parts:
        found = re.compile(re.escape(json.dumps(part)) + r"\s*:").search(text, at)
        if found is None:
            break
        at = found.start()
    return f"{path}:{text.count(chr(10), 0, at) + 1}"


def said_in_yaml(text: str, path: str) -> Said:
    """Nested YAML mappings with scalars and [lists], or dotted overrides ("a.b=c", "cfg.a.b = c"), as dotted keys.

    That is what training configurations use; anything else of YAML (anchors, tags, block lists, several documents) is
    refused with its line.
    """
    _check_size(text, path)
    broken = Complaints()
    entries: dict[str, Entry] = {}
    open_at: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        where, body = f"{path}:{number}", _without_comment(line)
        if not body.strip():
            continue
        depth = len(body) - len(body.lstrip(" "))
        while open_at and open_at[-1][0] >= depth:
            open_at.pop()
        found = re.fullmatch(r"([A-Za-z_][\w.]*)\s*(?::(?:\s+(.*))?|=(.*))", body.strip())
        if found is None or (depth and not open_at):
            broken.add(f"{_shown(body.strip())} is not `key: value` or `key=value`.", where=where)
            open_at.append((depth, "?"))
            continue
        # Recipes in Python assign to the fields of a `cfg`.
        key = ".".join([*(name for _, name in open_at), found[1].removeprefix("cfg.")])
        value = (found[2] if found[3] is None else found[3]) or ""
        if value.strip() or found[3] is not None:
            try:
                entries[key] = Entry(_scalar(value.strip()), where)
            except ValueError as error:
                broken.add(f"{key}: {error}", where=where)
                open_at.append((depth, found[1]))
        else:
            open_at.append((depth, found[1]))
    broken.raise_if_any()
    return Said(entries)


def _without_comment(line: str) -> str:
    """A line without its comment: a # at its start or after a blank, outside quotes."""
    quote = ""
    for index, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "#" and (index == 0 or line[index - 1].isspace()):
            return line[:index].rstrip()
    return line.rstrip()


def _scalar(text: str) -> Any:
    """A YAML scalar or flow list. Raises ValueError for what is neither."""
    if text[:1] in "\"'" and len(text) > 1 and text[-1] == text[0]:
        return text[1:-1]
    if text.startswith("["):
        if not text.endswith("]"):
            raise ValueError("a list must close on its line.")
        return [_scalar(item.strip()) for item in text[1:-1].split(",") if item.strip()]
    if text[:1] in tuple("&*!|>{\"'%@`"):
        raise ValueError(f"{_shown(text)}: only plain values and [lists] are read.")
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("null", "none", "~", ""):
        return None
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", text):
        return float(text)
    return text


def _leaves(table: Mapping[str, Any], parts: tuple[str, ...]) -> Iterable[tuple[str, tuple[str, ...], Any]]:
    for name, value in table.items():
        here = (*parts, str(name))
        if isinstance(value, dict):
            yield from _leaves(value, here)
        else:
            yield ".".join(here), here, value


def _check_size(text: str, path: str) -> None:
    if len(text) > MAX_TEXT:
        raise InputError([Problem(f"{len(text):,} characters; at most {MAX_TEXT:,} are read.", path)])


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
