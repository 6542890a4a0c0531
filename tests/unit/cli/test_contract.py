"""What scripts rely on: the keys of each JSON document, and exit codes with complete errors (docs/guide/scripts.md)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ESTIMATE = ["estimate", "gpt2-124m", "dgx-a100", "--nodes", "1", "--tp", "2", "--dp", "4", "--global-batch", "32"]
ESTIMATE_KEYS = {
    "step_time_s", "step_time_low_s", "step_time_high_s", "bracket_s", "tokens_per_s", "tokens_per_s_per_device",
    "model_flops_per_step", "model_flops_per_s_per_device", "mfu", "hfu", "peak_memory_bytes", "device_memory_bytes",
    "fits", "time", "memory", "traffic_bytes", "provenance",
}  # fmt: skip
PLAN_KEYS = {"considered", "legal", "fits", "engine_runs", "optimal", "wall_s", "rejected", "strategies"}
VALIDATE_KEYS = {"runs", "scored", "skipped", "overall", "by_family", "by_regime", "rows"}
ROW_KEYS = {
    "run_id", "family", "predicted_s", "low_s", "high_s", "measured_s", "error", "predicted_peak_bytes",
    "measured_peak_bytes", "predicted_fits", "outcome",
}  # fmt: skip


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulator", *words], capture_output=True, text=True, check=False, timeout=120
    )


def document(*words: str) -> dict[str, Any]:
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_estimate() -> None:
    found = document(*ESTIMATE)
    assert found.keys() >= ESTIMATE_KEYS
    assert sum(found["time"].values()) == pytest.approx(found["step_time_s"], rel=1e-9)
    assert found["memory"].keys() >= {"per_stage", "parts"}
    assert run(*ESTIMATE, "--json").stdout == run(*ESTIMATE, "--json").stdout


def test_plan() -> None:
    found = document("plan", "gpt2-124m", "dgx-a100", "--nodes", "1", "--global-batch", "32", "--top", "3")
    assert found.keys() >= PLAN_KEYS
    assert 1 <= len(found["strategies"]) <= 3
    assert found["strategies"][0].keys() >= {"strategy", "estimate"}
    assert found["strategies"][0]["estimate"].keys() >= ESTIMATE_KEYS


def test_validate(root: Path) -> None:
    found = document("validate", str(root / "validation" / "runs" / "korthikanti.csv"))
    assert found.keys() >= VALIDATE_KEYS
    assert len(found["rows"]) == found["runs"]
    assert all(row.keys() >= ROW_KEYS for row in found["rows"])


def test_count() -> None:
    found = document("count", "gpt2-124m")
    assert found["parameters"]["total"] == 124_439_808  # openai/gpt-2: 124M; transformers' GPT2Model counts the same
    assert found.keys() >= {"parameters", "flops"}


def test_every_problem_is_said_at_once_with_exit_code_2() -> None:
    done = run("estimate", "gpt3-17b", "dgx-a10", "--global-batch", "8")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean gpt3-175b?" in done.stderr
    assert "Did you mean dgx-a100?" in done.stderr
    done = run(*ESTIMATE[:5], "--tp", "5", "--dp", "3", "--global-batch", "31")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) >= 3


def test_nothing_fits_is_an_answer_with_exit_code_1() -> None:
    done = run("plan", "gpt3-175b", "dgx-a100", "--nodes", "1", "--global-batch", "8")
    assert done.returncode == 1
    assert "fit" in done.stderr + done.stdout
