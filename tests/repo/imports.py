"""Which module of simulator/ imports which: read from the source, not by importing."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """`importer` imports `imported` (both dotted) at `line`. `deferred`: inside a function."""

    importer: str
    imported: str
    line: int
    deferred: bool


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of simulator/."""
    found = {}
    for file in sorted((root / "simulator").rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


class _Reader(ast.NodeVisitor):
    def __init__(self, name: str, package: str, known: dict[str, Path]) -> None:
        self.name, self.package, self.known = name, package, known
        self.depth = 0
        self.found: list[Import] = []

    def _enter(self, node: ast.AST) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _enter  # noqa: N815 (names that ast gives)

    def visit_If(self, node: ast.If) -> None:
        typing_only = ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for child in node.orelse if typing_only else [node.test, *node.body, *node.orelse]:
            self.visit(child)

    def _add(self, imported: str, line: int) -> None:
        self.found.append(Import(self.name, imported, line, self.depth > 0))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] == "simulator":
                self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parent = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            base = ".".join([*parent, *([node.module] if node.module else [])])
        if base.split(".")[0] != "simulator":
            return
        for alias in node.names:
            if base == "simulator" and alias.name == "__version__":
                continue  # The version is a word, not a dependency.
            inner = f"{base}.{alias.name}"
            self._add(inner if inner in self.known else base, node.lineno)


def imports_of(name: str, known: dict[str, Path]) -> list[Import]:
    """Every import of a module of simulator/ in `name`, those for type checkers only left out."""
    file = known[name]
    reader = _Reader(name, name if file.name == "__init__.py" else name.rpartition(".")[0], known)
    reader.visit(ast.parse(file.read_text(encoding="utf-8"), filename=str(file)))
    return reader.found
