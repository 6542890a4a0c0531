"""The mutants of a file: every function of it with one piece changed by mutmut's own operators."""

from __future__ import annotations
import __future__

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libcst as cst

MESSAGES = {"add", "require", "Problem", "InputError", "Infeasible", "did_you_mean"}
"""Calls whose texts are error messages."""


@dataclass(frozen=True)
class Mutant:
    """One changed function: its name in the module, the lines that differ, and the code that it gets."""

    function: str
    change: str
    source: str


def mutants_of(path: Path) -> list[Mutant]:
    """Every mutant of every function of a file, messages and equal code left out."""
    from mutmut.mutation.file_mutation import create_mutations

    # mutmut leaves decorated functions out; the code that `patch` gives a property or a cached function has none.
    text = cst.parse_module(path.read_text(encoding="utf-8")).visit(_Undecorated()).code
    module, mutations, _, _ = create_mutations(str(path), text)
    names = dict(_functions(module.body, ""))
    parents: dict[cst.FunctionDef, dict[int, Any]] = {}
    found = []
    for mutation in mutations:
        node = mutation.contained_by_top_level_function
        if node is None or node not in names:
            continue
        above = parents.setdefault(node, dict(_parents(node)))
        if _is_message(mutation.original_node, above):
            continue
        changed = node.deep_replace(mutation.original_node, mutation.mutated_node)
        before, after = _text(node), _text(changed)
        if _code(before, names[node]) == _code(after, names[node]):
            continue
        found.append(Mutant(names[node], _difference(before, after), after))
    return found


class _Undecorated(cst.CSTTransformer):
    """Functions without their decorators, but for what says how they are bound."""

    def leave_FunctionDef(self, _: cst.FunctionDef, updated_node: cst.FunctionDef) -> cst.FunctionDef:  # noqa: N802
        kept = [each for each in updated_node.decorators if _bound_by(each.decorator)]
        return updated_node.with_changes(decorators=kept)


def _bound_by(decorator: cst.BaseExpression) -> bool:
    return isinstance(decorator, cst.Name) and decorator.value in {"staticmethod", "classmethod"}


def _functions(body: Any, inside: str) -> Iterator[tuple[Any, str]]:
    for node in body:
        if isinstance(node, cst.FunctionDef):
            yield node, f"{inside}{node.name.value}"
        elif isinstance(node, cst.ClassDef):
            yield from _functions(node.body.body, f"{inside}{node.name.value}.")


def _parents(node: Any) -> Iterator[tuple[int, Any]]:
    for child in node.children:
        yield id(child), node
        yield from _parents(child)


def _is_message(node: Any, above: dict[int, Any]) -> bool:
    """Whether a text is (part of) what an error says."""
    if isinstance(node, cst.Call) and _called(node) in {"Problem", "InputError", "Infeasible"}:
        return True
    if not isinstance(node, cst.SimpleString | cst.ConcatenatedString | cst.FormattedString | cst.FormattedStringText):
        return False
    while id(node) in above:
        node = above[id(node)]
        if isinstance(node, cst.Raise) or (isinstance(node, cst.Call) and _called(node) in MESSAGES):
            return True
    return False


def _called(call: cst.Call) -> str:
    function = call.func
    return function.attr.value if isinstance(function, cst.Attribute) else getattr(function, "value", "")


def _text(function: cst.FunctionDef) -> str:
    return cst.Module([function.with_changes(decorators=[], leading_lines=[])]).code


def _code(source: str, name: str) -> Any:
    """What tells two functions apart: their code, all the way down."""
    code = compile(source, "<mutant>", "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)

    def plain(value: Any) -> Any:
        if not isinstance(value, types.CodeType):
            return repr(value)
        return value.co_code, value.co_names, value.co_varnames, value.co_freevars, tuple(map(plain, value.co_consts))

    return name, plain(code)


def _difference(before: str, after: str) -> str:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    kept = [line[:2] + line[2:].strip() for line in lines if line[:2] in {"- ", "+ "}]
    old, new = ("; ".join(line[2:] for line in kept if line[0] == sign) for sign in "-+")
    return f"{old} => {new}"[:300]
