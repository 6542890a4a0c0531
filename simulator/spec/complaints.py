"""pydantic's complaints in words for people: which key, which line, what is wrong, which key was meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from simulator.errors import Problem, did_you_mean
from simulator.spec.toml_lines import KeyPath

if TYPE_CHECKING:  # reading imports this module when a file has problems.
    from simulator.spec.reading import Document

_WANTED = {
    "string_type": "must be text",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "mapping_type": "must be a table",
    "finite_number": "must be a finite number",
}
_BOUNDS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
    "multiple_of": ("multiple_of", "must be a multiple of"),
    "too_short": ("min_length", "must have this many entries at least:"),
    "too_long": ("max_length", "must have this many entries at most:"),
    "string_too_short": ("min_length", "must have this many characters at least:"),
    "string_too_long": ("max_length", "must have this many characters at most:"),
}


def problems_of(error: ValidationError, document: Document, model: type[BaseModel]) -> list[Problem]:
    """Every error of a failed validation of `document` against `model`, by line."""
    problems = [_problem(detail, document, model) for detail in error.errors(include_url=False)]
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda problem: _line_of(problem.where))


def _line_of(where: str) -> int:
    return int(where.rpartition(":")[2])


def _problem(detail: ErrorDetails, document: Document, model: type[BaseModel]) -> Problem:
    kind = detail["type"]
    path = _in_table(detail["loc"], document.table, missing=kind == "missing")
    if kind == "missing":
        written = _keys_at(document.table, path[:-1]) - fields_at(model, path[:-1])
        near = did_you_mean(str(path[-1]), written) if written else ""
        hint = f"Is {near[len('Did you mean ') : -1]} meant for it?" if near.startswith("Did") else ""
        return document.problem(path, "missing key.", hint)
    if kind == "extra_forbidden":
        return document.problem(path, "unknown key.", did_you_mean(str(path[-1]), fields_at(model, path[:-1])))
    return document.problem(path, *_message(detail))


def _message(detail: ErrorDetails) -> tuple[str, str]:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in _WANTED:
        return f"{_WANTED[kind]}, got {_shown(given)}.", ""
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        actual = context.get("actual_length", len(str(given))) if bound.endswith("length") else given
        return f"{words} {context[bound]}, got {_shown(actual)}.", ""
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"{_shown(given)} is not known.", did_you_mean(str(given), choices)
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}, got {_shown(given)}.", ""
    if kind == "value_error":
        return _sentence(str(context["error"])), ""
    return _sentence(f"{detail['msg']}, got {_shown(given)}"), ""


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def _shown(value: object) -> str:
    """A value as TOML writes it, cut to 60 characters."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = '"' + value.encode("ascii", "backslashreplace").decode().replace("\n", "\\n") + '"'
    elif isinstance(value, Mapping):
        text = "a table"
    else:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _in_table(loc: tuple[int | str, ...], table: object, *, missing: bool) -> KeyPath:
    """pydantic's location without the union tags it interleaves."""
    path: list[str | int] = []
    at: Any = table
    for index, key in enumerate(loc):
        inside = isinstance(at, Mapping) and key in at
        if inside or (isinstance(at, list) and isinstance(key, int) and key < len(at)):
            at = at[key]
        elif not (missing and index == len(loc) - 1):
            continue
        path.append(key)
    return tuple(path)


def _keys_at(table: object, path: KeyPath) -> set[str]:
    at: Any = table
    for key in path:
        at = at[key]
    return set(at) if isinstance(at, Mapping) else set()


def fields_at(model: type[BaseModel], path: KeyPath) -> set[str]:
    """Keys that the model knows in the table at `path` (of all members where the type is a union)."""
    types: list[Any] = [model]
    for key in path:
        types = [child for found in types for child in _children(found, key)]
    return {name for found in types for name in _own_fields(found)}


def _own_fields(found: Any) -> set[str]:
    if isinstance(found, type) and issubclass(found, BaseModel):
        return {info.alias or name for name, info in found.model_fields.items()}
    if get_origin(found) is dict:
        return {str(choice) for choice in get_args(get_args(found)[0]) if isinstance(choice, str)}
    return set()


def _children(found: Any, key: str | int) -> list[Any]:
    if isinstance(found, type) and issubclass(found, BaseModel):
        fields = found.model_fields.items()
        return [kind for name, info in fields if key in (name, info.alias) for kind in _members(info.annotation)]
    arguments = get_args(found)
    if get_origin(found) is dict:
        return _members(arguments[1])
    return [kind for argument in arguments for kind in _members(argument)]


def _members(kind: Any) -> list[Any]:
    """A type without Annotated, as the members of its union."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [member for argument in get_args(kind) for member in _members(argument)]
    return [kind]
