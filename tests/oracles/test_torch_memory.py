"""Model states and activations of a step beside torch's MemTracker, by category."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from simulator.arch.parameters import COUNTING
from simulator.catalog import load_framework
from simulator.parallel.lower import lower
from simulator.parallel.recompute import Policy
from simulator.parallel.states import held_parameters, state_bytes
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from tests.support import gpt

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from simulator.validate.torch_counts import ours  # noqa: E402
from simulator.validate.torch_counts.blocks import Setting  # noqa: E402
from simulator.validate.torch_counts.tally import build, token_ids  # noqa: E402

MODEL, BATCH, SEQ_LEN = gpt(256, 2, 4, vocab=1024, seq_len=64), 4, 64
KERNELS = replace(COUNTING, activation_dtype="fp32", gemm_dtype="fp32")
POLICIES = {"none": Policy(), "full": Policy(full=True), "selective": Policy(modules=frozenset({"core_attn"}))}


def tracked(policy: Policy) -> tuple[Mapping[str, int], Mapping[str, int], int]:
    """Bytes by category after the forward and after the backward of a second AdamW step, and parameter tensors."""
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode():
        module = build(Setting(model=MODEL, kernels=KERNELS, policy=policy))
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, foreach=False)
        ids = token_ids(MODEL, BATCH, SEQ_LEN, 0)
        tracker = MemTracker()
        tracker.track_external(module, optimizer, *ids)
        with tracker:
            module(*ids).backward()
            optimizer.step()
            optimizer.zero_grad()
            tracker.reset_mod_stats()
            loss = module(*ids)
            forward = tracker.get_tracker_snapshot("current")
            loss.backward()
            backward = tracker.get_tracker_snapshot("current")
    return _categories(forward), _categories(backward), len(list(module.parameters()))


def _categories(snapshot: Mapping[Any, Mapping[Any, int]]) -> dict[str, int]:
    return {getattr(kind, "value", kind): size for sizes in snapshot.values() for kind, size in sizes.items()}


@pytest.mark.parametrize("recompute", POLICIES)
def test_states_and_activations_are_the_trackers(recompute: str) -> None:
    """Equal to the byte. torch's AdamW also keeps a 4 B step counter per parameter tensor. Token ids are the caller's,
    so the tracker does not book them as activations; what backward frees is everything kept for it.
    """
    after_forward, after_backward, tensors = tracked(POLICIES[recompute])
    framework = replace(load_framework("pytorch"), vocab_multiple=1)
    run = Run(global_batch=BATCH, precision="fp32", framework="pytorch")
    strategy = Strategy(micro_batch=BATCH)
    states = state_bytes(held_parameters(lower(MODEL, run, strategy, framework).stages), run, strategy, framework)
    assert after_backward["Parameter"] == states["weights"]
    assert after_backward["Gradient"] == states["gradients"]
    assert after_backward["Optstate"] == states["optimizer"] + 4 * tensors
    kept = sum(ours.saved_sizes(ours.segments(MODEL, KERNELS, BATCH, SEQ_LEN), POLICIES[recompute]))
    assert after_forward["Activation"] - after_backward["Activation"] == kept - BATCH * SEQ_LEN * 8
