"""Points that ask the planner: the best strategy beside the best of every point that gives one."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.sweep.evaluate import PLAN_COLUMNS, case_of_point, evaluate_point
from simulator.sweep.points import SweepSpec, read_sweep
from simulator.sweep.run import sweep

CASE = {"model": "gpt2-124m", "cluster": "dgx-a100", "nodes": 1, "seq_len": 256, "global_batch": 16}
LIMITS = {"plan.allow": ["tp=1..4", "micro_batch=1,2", "zero=0,1", "schedule=1f1b", "recompute=none"],
          "cp": 1, "vp": 1, "sequence_parallel": True}  # fmt: skip


def _given() -> list[dict[str, object]]:
    """Every strategy that LIMITS leave, as points of their own."""
    return [
        {**CASE, "tp": tp, "pp": pp, "micro_batch": size, "zero": zero, "sequence_parallel": True}
        for tp, pp, size, zero in product((1, 2, 4), (1, 2, 4, 8), (1, 2), (0, 1))
        if tp * pp <= 8
    ]


@pytest.mark.parametrize(("objective", "column"), [("step_time", "step_time_s"), ("memory", "peak_memory_bytes")])
def test_the_best_of_a_plan_is_the_best_of_all_points(objective: str, column: str) -> None:
    row = evaluate_point({**CASE, **LIMITS, "plan.objective": objective})
    others = [found for found in map(evaluate_point, _given()) if found["status"] == "answered" and found["fits"]]
    assert row["status"] == "answered"
    assert len(others) > 20
    assert row[column] == pytest.approx(min(found[column] for found in others), rel=1e-12)
    assert row["gap"] == 0.0


def test_a_row_says_the_strategy_that_gives_its_numbers() -> None:
    row = evaluate_point({**CASE, **LIMITS, "price": "2 USD/h", "tokens": "1B"})
    names = ("tp", "pp", "dp", "cp", "ep", "micro_batch", "zero", "recompute", "schedule", "sequence_parallel")
    again = evaluate_point({**CASE, "price": "2 USD/h", "tokens": "1B", **{name: row[name] for name in names}})
    assert {name: row[name] for name in again} == again
    assert set(PLAN_COLUMNS) <= set(row)
    assert again["usd"] > 0.0


def test_what_a_point_sets_is_fixed() -> None:
    case = case_of_point({**CASE, "plan.objective": "tokens_per_s", "tp": 4, "zero": 3})
    assert (case.strategy.tp, case.strategy.zero) == (4, 3)


def test_a_point_without_any_strategy_is_refused_with_the_reasons_counted() -> None:
    row = evaluate_point({**CASE, "model": "gpt3-175b", "plan.forbid": ["recompute=full"]})
    assert row["status"] == "refused"
    assert "does not fit in memory" in row["message"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('objective = "step_tim"', "Did you mean step_time?"),
        ("objective = 3", "valid string"),
        ('allow = ["tp"]', "is not NAME=VALUE"),
        ('forbid = ["schedul=1f1b"]', "Did you mean schedule?"),
        ('forbid = "recompute=full"', "valid array"),
        ('fix = ["tp=8"]', "unknown field"),
    ],
)
def test_a_bad_plan_is_refused_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(f'[case]\nmodel = "gpt2-124m"\ncluster = "dgx-a100"\nglobal_batch = 16\n[case.plan]\n{line}\n')
    with pytest.raises(InputError, match=r"sweep\.toml:6: plan") as refusal:
        read_sweep(file)
    assert said in str(refusal.value)


def test_a_sweep_of_plans_has_the_strategy_in_its_table_whoever_computes_it(tmp_path: Path) -> None:
    spec = SweepSpec(case={**CASE, **LIMITS}, grid={"plan.objective": ["step_time", "memory"], "nodes": [1, 2]})
    spec = SweepSpec(case={name: value for name, value in spec.case.items() if name != "nodes"}, grid=spec.grid)
    assert sweep(spec, tmp_path / "one", workers=0).counts() == {"answered": 4}
    sweep(spec, tmp_path / "two", workers=2)
    table = (tmp_path / "one" / "results.csv").read_bytes()
    assert table == (tmp_path / "two" / "results.csv").read_bytes()
    assert {"pp", "micro_batch", "schedule", "gap"} <= set(table.split(b"\n")[0].decode().split(","))
    plain = sweep(SweepSpec(case=CASE, grid={"tp": [1]}), tmp_path / "plain", workers=0)
    assert "gap" not in plain.frame().columns
