"""Size discipline: a file or a function that a person can read in one sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 400
FUNCTION_LINES = 60
POSITIONAL_PARAMETERS = 6
TALL_FUNCTIONS: dict[str, str] = {}
"""simulator/file.py:function -> why it may be taller. Empty is the aim."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(root: Path) -> Iterator[tuple[str, Function]]:
    for file in sorted((root / "simulator").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{file.relative_to(root).as_posix()}:{node.name}", node


def _lines(function: Function) -> int:
    """Lines of a function, its docstring and decorators left out: words do not make it harder to read."""
    start, docstring = function.body[0].lineno, ast.get_docstring(function, clean=False)
    described = 0 if docstring is None else (function.body[0].end_lineno or start) - start + 1
    return (function.end_lineno or start) - function.lineno + 1 - described


def test_no_file_is_longer_than_one_sitting(root: Path) -> None:
    lines = {
        file.relative_to(root).as_posix(): len(file.read_text(encoding="utf-8").splitlines())
        for folder in ("simulator", "tools", "benchmarks")
        for file in (root / folder).rglob("*.py")
    }
    too_long = {name: count for name, count in lines.items() if count > FILE_LINES}
    assert not too_long, f"over {FILE_LINES} lines: {too_long}"


def test_no_function_is_taller_than_a_screen(root: Path) -> None:
    tall = {name: _lines(function) for name, function in _functions(root) if _lines(function) > FUNCTION_LINES}
    assert set(tall) == set(TALL_FUNCTIONS), f"over {FUNCTION_LINES} lines: {tall}"


def test_no_function_takes_a_long_row_of_unnamed_arguments(root: Path) -> None:
    too_many = {}
    for name, function in _functions(root):
        row = [a.arg for a in [*function.args.posonlyargs, *function.args.args] if a.arg not in {"self", "cls"}]
        commands = any("click" in ast.unparse(d) or ".command" in ast.unparse(d) for d in function.decorator_list)
        torch_calls = row[:1] == ["ctx"]  # torch.autograd.Function.forward: torch passes by position.
        if len(row) > POSITIONAL_PARAMETERS and not commands and not torch_calls:
            too_many[name] = row
    assert not too_many, f"over {POSITIONAL_PARAMETERS} positional parameters (make them keyword-only): {too_many}"
