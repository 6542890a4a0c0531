"""The reliability report says what is: its properties have their tests, its mutants their functions."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


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
    found = json.loads((root / "validation" / "mutation.json").read_text(encoding="utf-8"))
    assert not found["files"].keys() & found.get("samples", {}).keys()
    for name, entry in (found["files"] | found.get("samples", {})).items():
        assert (root / name).exists(), name
        assert len(entry["survivors"]) == entry["mutants"] - entry["killed"], name
        functions = {node.name for node in ast.walk(ast.parse((root / name).read_text(encoding="utf-8")))
                     if isinstance(node, ast.FunctionDef)}  # fmt: skip
        for survivor in entry["survivors"]:
            assert survivor["function"].rpartition(".")[2] in functions, f"{name}: {survivor['function']}"
            assert survivor["reason"], name


def test_a_sample_s_share_is_weighted_by_file_and_has_cochran_s_interval(root: Path) -> None:
    """By hand: 300 mutants of which 10 were drawn and 8 killed, 100 mutated whole of which 90 were killed. The variance
    is (3/4)^2 (1 - 10/300) x 9/12 x 3/12 / 9."""
    score = _tool(root, "mutation_score")
    found = score.killed_share([(300, 10, 8), (100, 100, 90)])
    assert found.share == pytest.approx(0.75 * 0.8 + 0.25 * 0.9)
    reach = 1.96 * (0.5625 * (290 / 300) * 0.1875 / 9) ** 0.5
    assert (found.low, found.high) == (pytest.approx(0.825 - reach), 1.0)
    assert score.killed_share([(300, 300, 270)]) == score.Estimate(0.9, 0.9, 0.9)


def test_draws_are_the_same_for_the_same_seed_and_file(root: Path) -> None:
    drawn = _tool(root, "mutation_score").drawn
    every = list("abcdefgh")
    assert drawn(every, 3, 1, "form.py") == drawn(every, 3, 1, "form.py")
    draws = {tuple(drawn(every, 3, seed, "form.py")) for seed in range(20)}
    assert len(draws) > 1
    assert all(len(set(draw)) == 3 and list(draw) == sorted(draw) for draw in draws)
    assert drawn(every, 99, 1, "form.py") == every
