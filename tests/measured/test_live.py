"""A small live suite: calibrate, measure and score work, and clearly different steps rank right. No absolute time."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.calibrate.fit import fit_kernels
from simulator.calibrate.launch import run_ranks
from simulator.calibrate.machine import document, fingerprint
from simulator.calibrate.write import toml_text
from simulator.measure.score import score, summary
from simulator.measure.suite import suite_of
from simulator.measure.table import measured_case

pytestmark = pytest.mark.loopback


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration in one short round: too few sizes to be accurate, enough to be used."""
    task = {"quick": True, "dtypes": ["fp32"], "rounds": 1, "budget_s": 1.0, "device": "cpu"}
    timed = run_ranks("simulator.calibrate.worker", task, 1, timeout_s=600.0)[0]
    task = {"sizes": [4096, 1 << 20, 1 << 23], "large_sizes": [], "shared_every": 4, "rounds": 1}
    network = run_ranks("simulator.calibrate.network", task, 2, timeout_s=300.0)
    middle = timed["references"][len(timed["references"]) // 2]
    found = fingerprint() | {"date": "now", "ranks": 2, "wall_s": 1.0, "load_before": 0.0, "load_after": 0.0,
                             "spread_fraction": 0.0, "reference_s": middle}  # fmt: skip
    path = tmp_path_factory.mktemp("machine") / "here.toml"
    path.write_text(toml_text(document(fit_kernels(timed["rows"]), network, found, ("fp32",))), encoding="utf-8")
    return path


def test_measured_steps_are_scored_and_ranked(machine: Path) -> None:
    rows = []
    for ranks, words in ((1, ("gpt-1m b8 s128", "gpt-1m b32 s128")), (2, ("gpt-1m dp2", "gpt-1m tp2"))):
        names = [entry.name for entry in suite_of("tiny") if entry.strategy.devices == ranks
                 and entry.name.startswith(words) and "zero" not in entry.name]  # fmt: skip
        task = {"suite": "tiny", "names": names, "rounds": 1}
        answers = run_ranks("simulator.measure.worker", task, ranks, timeout_s=300.0)
        rows += [measured_case("tiny", name, [answer["times"] for answer in answers], load=0.0, peak_memory_bytes=0.0)
                 for name in names]  # fmt: skip
    scored = {entry.measured.case: entry for entry in score(rows, machine)}
    assert len(scored) == 4
    small, large = scored["gpt-1m b8 s128"], scored["gpt-1m b32 s128"]
    assert large.measured.cpu_s > 2 * small.measured.cpu_s
    assert large.predicted.cpu_s > 2 * small.predicted.cpu_s
    for entry in scored.values():
        assert entry.measured.cpu_s > entry.predicted.one_rate_cpu_s / 2, "no step is quicker than its products"
    assert sum(part["cases"] for part in summary(list(scored.values()))["by_class"].values()) == 4
