"""Processor seconds read off a lowered step: work adds up over ranks, waiting does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.breakdown import time_of
from simulator.measure.predict import _lowered, cpu_seconds, matrix_cpu_seconds, predict
from simulator.measure.suite import case, suite_of


@pytest.fixture(scope="module")
def machine(root: Path) -> Path:
    return min((root / "validation" / "measured").glob("*/machine.toml"))


def test_one_process_spends_what_its_step_takes(machine: Path) -> None:
    entry = case("gpt-9m", 4, 256)
    lowered = _lowered(entry, machine, "cpu")
    assert cpu_seconds(lowered, entry) == pytest.approx(time_of(lowered, entry.strategy).total_s, rel=1e-9)
    assert 0.5 < matrix_cpu_seconds(lowered, entry) / cpu_seconds(lowered, entry) < 1.0


def test_a_pipeline_spends_the_work_of_all_stages_but_not_its_bubble(machine: Path) -> None:
    entry = case("gpt-9m", 4, 256, pp=2, micro_batch=1)
    alone = case("gpt-9m", 4, 256, micro_batch=1)
    spent, plain = predict(entry, machine).cpu_s, predict(alone, machine).cpu_s
    assert plain < spent < 1.05 * plain
    assert spent < 2 * predict(entry, machine).wall_s


def test_every_case_of_the_suite_is_predicted(machine: Path) -> None:
    for entry in suite_of("full"):
        predicted = predict(entry, machine)
        assert 0 < predicted.one_rate_cpu_s < predicted.cpu_s
        assert 0 < predicted.matrix_cpu_s < predicted.cpu_s
        assert predicted.peak_memory_bytes > 0
