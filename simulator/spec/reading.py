"""Reading TOML politely: limits before parsing, and every complaint with its file and line.

`tomllib` is safe but gives no positions, raises errors of four kinds, and takes quadratic time on a dotted key, so a
linear scan first maps every key to its line and refuses what is too deep. No YAML, no code, no other format is read.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from simulator.errors import InputError, Problem
from simulator.spec.toml_lines import KeyPath, TooDeep, key_lines

if TYPE_CHECKING:
    from pydantic import BaseModel

Model = TypeVar("Model", bound="BaseModel")

Fault = tuple[str | KeyPath, str, str]
"""What is wrong across the keys of a document: key, message, hint."""

_LONG_INTEGER = re.compile(r"[0-9_]{4000,}")
"""Python refuses to convert more than 4,300 digits."""
MAX_FILE_BYTES = 256 * 1024
MAX_INTEGER = 2**53
"""The largest integer that a float (and JavaScript) holds exactly."""


@dataclass(frozen=True, slots=True)
class Document:
    """One TOML file: its name as shown to people, its table, and the line of every key."""

    path: str
    table: Mapping[str, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict, repr=False)

    def line(self, key_path: str | KeyPath = ()) -> int:
        """The line of a key, given as ("tiers", 0, "name") or "tiers.0.name"; of its nearest parent when absent."""
        keys = _key_path(key_path)
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)

    def where(self, key_path: str | KeyPath = ()) -> str:
        """Where a key is, as "path:line"."""
        return f"{self.path}:{self.line(key_path)}"

    def problem(self, key_path: str | KeyPath, message: str, hint: str = "") -> Problem:
        """A problem at a key: "path:line: tiers.0.name: message hint"."""
        shown = ".".join(map(str, _key_path(key_path)))
        return Problem(f"{shown}: {message}" if shown else message, self.where(key_path), hint)


def read_document(source: Path | Traversable, shown: str = "") -> Document:
    """Reads and parses one TOML file; `shown` is its name in messages (default: its path).

    Raises InputError, naming the file and where possible the line, when it cannot be read, is larger than 256 KiB, is
    not UTF-8, is not TOML, nests too deep or holds a number that is not finite or not exact.
    """
    path = shown or str(source)
    return parse_document(read_text(source, path), path)


def parse_document(text: str, path: str) -> Document:
    """Parses TOML text into a Document called `path`. Raises InputError as `read_document` does."""
    try:
        lines = key_lines(text)
        table = tomllib.loads(text)
    except TooDeep as error:
        raise _refusal(f"{path}:{error.line}", str(error)) from None
    except tomllib.TOMLDecodeError as error:
        message, line = _decode_message(str(error), text)
        raise _refusal(f"{path}:{line}", f"not valid TOML: {message}") from None
    except (ValueError, RecursionError) as error:
        long = _LONG_INTEGER.search(text)
        where = f"{path}:{text.count(chr(10), 0, long.start()) + 1}" if long else path
        reason = "an integer has more digits than are read" if long else str(error).splitlines()[0]
        raise _refusal(where, f"not valid TOML: {reason}.") from None
    document = Document(path, table, lines)
    problems = [document.problem(keys, message) for keys, message in _bad_numbers(table, ())]
    if problems:
        raise InputError(problems)
    return document


def validated(document: Document, model: type[Model]) -> Model:
    """The document's table as an instance of a pydantic model.

    Raises one InputError with every problem as "file:line: key: message", with the nearest known key for unknown ones.
    """
    from pydantic import ValidationError

    from simulator.spec.complaints import problems_of

    try:
        return model.model_validate(document.table)
    except ValidationError as error:
        raise InputError(problems_of(error, document, model)) from None


def raise_faults(document: Document, faults: Iterable[Fault]) -> None:
    """Raises one InputError with every fault at its line, in the order of the file; nothing when there is none."""
    found = [(document.line(key), document.problem(key, message, hint)) for key, message, hint in faults]
    if found:
        raise InputError([problem for _, problem in sorted(found, key=lambda pair: pair[0])])


def quantity(dimension: str) -> Any:
    """A pydantic field type: text such as "450 GB/s" of one dimension of `simulator.units`, read as an SI float.

    Use as `bandwidth: Annotated[float, quantity("bandwidth")]`. A bare number is refused: files name their units.
    """
    from pydantic import BeforeValidator

    from simulator.units import parse_quantity

    def parse(value: object) -> float:
        try:
            return parse_quantity(value, dimension)
        except InputError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(parse)


def _key_path(key_path: str | KeyPath) -> KeyPath:
    if isinstance(key_path, str):
        return tuple(int(part) if part.isdigit() else part for part in key_path.split(".")) if key_path else ()
    return key_path


def _refusal(where: str, message: str) -> InputError:
    return InputError([Problem(message, where)])


def read_text(source: Path | Traversable, path: str) -> str:
    """The text of a catalogue file, called `path` in messages. Raises InputError as `read_document` does."""
    try:
        if not source.is_file():
            raise _refusal(path, "no such file." if not source.is_dir() else "is a folder, a TOML file is wanted.")
        with source.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _refusal(path, f"cannot be read: {reason}.") from None
    if len(data) > MAX_FILE_BYTES:
        raise _refusal(path, f"larger than {MAX_FILE_BYTES // 1024} KiB; a catalogue file is a few KiB.")
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refusal(f"{path}:{line}", f"not UTF-8 text (byte 0x{data[error.start]:02x}).") from None


def _decode_message(text: str, source: str) -> tuple[str, int]:
    """tomllib's message without its position, and the line it names."""
    message, _, position = text.partition(" (at ")
    digits = "".join(c for c in position.partition(",")[0] if c.isdigit())
    line = int(digits) if digits else max(1, len(source.splitlines()))
    return f"{message[:200]}.", line


def _bad_numbers(value: object, keys: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _bad_numbers(item, (*keys, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _bad_numbers(item, (*keys, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield keys, f"{value} is not a finite number."
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        yield keys, "an integer beyond 2^53 is not exact; no dimension is that large."
