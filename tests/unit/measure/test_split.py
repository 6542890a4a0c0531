"""A model split over tensor ranks, with and without sequence parallelism, computes what the whole one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.calibrate.launch import run_ranks


@pytest.mark.loopback
def test_split_models_have_the_loss_and_the_gradients_of_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    answers = run_ranks("split_worker", {}, 2, timeout_s=300.0)
    assert len(answers[0]) == 6
    for answer in answers:
        for name, errors in answer.items():
            assert errors["loss"] < 1e-5, name
            assert errors["gradient"] < 3e-3, (name, errors)
