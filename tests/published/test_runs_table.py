"""The project's copy of the published runs reads without a fault and holds what its README says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from simulator.validate.runs import PublishedRun, flags, read_runs

RUNS = Path(__file__).parents[2] / "validation" / "runs"


@pytest.fixture(scope="module")
def runs() -> tuple[PublishedRun, ...]:
    return read_runs(sorted(RUNS.glob("*.csv")))


def test_the_table_has_its_rows(runs: tuple[PublishedRun, ...]) -> None:
    by_family = Counter(run.family for run in runs)
    assert len(runs) == 2224
    assert (by_family["vtrain"], by_family["korthikanti"], by_family["colm_parallel_layouts"]) == (507, 9, 422)
    colm = [run for run in runs if run.family == "colm_parallel_layouts"]
    assert sum(run.outcome == "oom" for run in colm) == 257


def test_every_row_that_ran_has_a_step_time(runs: tuple[PublishedRun, ...]) -> None:
    assert not [run.run_id for run in runs if run.outcome == "ok" and run.step_time_s is None]


def test_only_rows_the_source_marks_contradict_themselves(runs: tuple[PublishedRun, ...]) -> None:
    """The converse does not hold: dp printed per expert replica is marked, and does not contradict."""
    assert all(not run.consistent for run in runs if flags(run))
    assert sum(bool(flags(run)) for run in runs) == 2


def test_korthikanti_step_times_give_the_published_mfu(runs: tuple[PublishedRun, ...]) -> None:
    """arXiv 2205.05198 table 5: 175B with sequence parallelism and selective recompute, 13.75 s, 51.4 % MFU (eq 7)."""
    (run,) = [r for r in runs if r.family == "korthikanti" and r.layers == 96 and r.recompute == "selective"]
    assert run.step_time_s == 13.75
    seq, hidden, layers, vocab, batch, devices = (
        float(dim or 0) for dim in (run.seq_len, run.hidden, run.layers, run.vocab, run.global_batch, run.devices)
    )
    flops = 72 * batch * seq * layers * hidden**2 * (1 + seq / (6 * hidden) + vocab / (12 * layers * hidden))
    assert flops / run.step_time_s / devices / 312e12 == pytest.approx(0.514, abs=0.0005)
