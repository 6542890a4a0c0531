"""The reliability report says what is: its properties have their tests, its mutants their functions."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType


def _tool(root: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", root / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_property_of_the_table_has_its_tests(root: Path) -> None:
    properties = _tool(root, "reliability_properties")
    assert properties.missing_tests() == []
    assert len(properties.PROPERTIES) >= 40


def test_survivors_are_of_files_that_are_there_and_counted(root: Path) -> None:
    files = json.loads((root / "validation" / "mutation.json").read_text(encoding="utf-8"))["files"]
    for name, entry in files.items():
        assert (root / name).exists(), name
        assert len(entry["survivors"]) == entry["mutants"] - entry["killed"], name
        functions = {node.name for node in ast.walk(ast.parse((root / name).read_text(encoding="utf-8")))
                     if isinstance(node, ast.FunctionDef)}  # fmt: skip
        for survivor in entry["survivors"]:
            assert survivor["function"].rpartition(".")[2] in functions, f"{name}: {survivor['function']}"
            assert survivor["reason"], name
