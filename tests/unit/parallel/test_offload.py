"""States in host memory, counted by hand on a model of 7 billion parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest

import simulator as sw
from simulator.errors import InputError

PARAMETERS = 6738415616  # Llama 2 7B, exact (Hugging Face safetensors index)
GIB = 2**30


def estimate(**strategy: object) -> sw.Estimate:
    cluster = replace(sw.load_cluster("dgx-a100"), nodes=1)
    run = sw.Run(global_batch=8, seq_len=2048, precision="bf16", framework="deepspeed")
    return sw.estimate(sw.load_model("llama-2-7b"), cluster, run, sw.Strategy(dp=8, recompute="full", **strategy))


@pytest.mark.parametrize(("zero", "kept"), [(1, {"weights", "gradients"}), (2, {"weights"}), (3, {"weights"})])
def test_offloading_the_optimizer_leaves_no_states_of_it_on_the_device(zero: int, kept: set[str]) -> None:
    """From ZeRO-2 the gradients wait on the host too; ZeRO-1 keeps them whole to reduce them."""
    inside, outside = estimate(zero=zero), estimate(zero=zero, offload="optimizer")
    assert inside.memory.parts["optimizer"] == pytest.approx(12 * PARAMETERS / 8, rel=1e-3)
    left = {name for name in ("weights", "gradients", "optimizer") if outside.memory.parts.get(name, 0.0) > 0}
    assert left == kept
    assert outside.memory.parts["weights"] == inside.memory.parts["weights"]


def test_offloading_parameters_leaves_only_gathered_ones() -> None:
    parts = estimate(zero=3, offload="parameters").memory.parts
    assert parts.get("weights", 0.0) == 0
    assert parts["gathered_parameters"] > 0


def test_the_update_runs_at_the_hosts_memory_and_parameters_come_back_over_its_link() -> None:
    """A node updates all 6.7e9 parameters at 30 B each over 409.6 GB/s; each device's eighth returns in bf16 over
    25 GB/s."""
    answer = estimate(zero=2, offload="optimizer")
    expected = 30 * PARAMETERS / 409.6e9 + 2 * PARAMETERS / 8 / 25e9
    assert answer.time.parts["optimizer"] == pytest.approx(expected, rel=1e-6)
    assert answer.step_time_s > estimate(zero=2).step_time_s
    assert any("lower bound" in note for note in answer.notes)


def test_parameters_on_the_host_return_with_every_gather_not_after_the_update() -> None:
    answer = estimate(zero=3, offload="parameters")
    assert answer.time.parts["optimizer"] == pytest.approx(30 * PARAMETERS / 409.6e9, rel=1e-6)
    plain = estimate(zero=3)
    sent = [sum((a.time.parts.get("dp", 0.0), a.time.hidden.get("dp", 0.0))) for a in (answer, plain)]
    # Forward and backward each bring the shard once, and the gradients leave once: three times 2 B of an eighth.
    assert sent[0] - sent[1] == pytest.approx(3 * 2 * PARAMETERS / 8 / 25e9, rel=1e-6)


def test_every_reason_against_it_is_told_at_once() -> None:
    cluster = replace(sw.load_cluster("gb200-nvl72"), nodes=1)
    run = sw.Run(global_batch=72, precision="bf16")
    with pytest.raises(InputError) as caught:
        sw.estimate(sw.load_model("llama-2-7b"), cluster, run, sw.Strategy(dp=cluster.devices, offload="parameters"))
    text = str(caught.value)
    assert "needs ZeRO-3 at least, not zero(0)" in text
    assert "says nothing of its hosts' memory" in text
    with pytest.raises(InputError, match="offload 'optimiser' is unknown"):
        estimate(zero=1, offload="optimiser")
