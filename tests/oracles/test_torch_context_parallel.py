"""Context parallelism's exchanges beside torch's own ring attention (private functions of torch 2.13)."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.arch.layer import layer_segment
from simulator.arch.operations import Collective
from simulator.arch.parameters import COUNTING
from simulator.arch.shard import Shard
from tests.support import gpt

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from simulator.validate.torch_counts.collectives import Recorder, fake_world  # noqa: E402

RANKS, BATCH, HEADS, SEQ_LEN, DIM = 8, 1, 16, 512, 64


def torch_events(rotate: str, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str, int], tuple[int, int]]:
    """One attention core, forward and backward, over 8 of 64 ranks; local tensors are [batch, heads, tokens, dim]."""
    import torch.distributed as dist
    from torch.distributed.tensor.experimental._context_parallel import _attention as ring

    aten = torch.ops.aten
    monkeypatch.setattr(ring._cp_options, "enable_load_balance", False)
    with fake_world(64):
        group = dist.new_group(list(range(RANKS)))
        monkeypatch.setattr(ring._cp_options, "rotate_method", ring._RotateMethod[rotate])
        with FakeTensorMode():
            q, k, v = (torch.zeros(BATCH, HEADS, SEQ_LEN // RANKS, DIM, dtype=torch.bfloat16) for _ in range(3))
            with Recorder() as recorder:
                made: Any = ring._templated_ring_attention(
                    group, 2, aten._scaled_dot_product_flash_attention, query=q, key=k, value=v, is_causal=False,
                    dropout_p=0.0,
                )
                recorder.phase = "backward"
                ring._templated_ring_attention_backward(
                    group, 2, aten._scaled_dot_product_flash_attention_backward.default, grad_out=made[0],
                    grad_out_name="grad_out", query=q, key=k, value=v, out=made[0], logsumexp=made[1],
                    is_causal=False, cum_seq_q=made[2], cum_seq_k=made[3], max_q=made[4], max_k=made[5],
                    dropout_p=0.0, philox_seed=made[6], philox_offset=made[7],
                )
    return recorder.totals()


def our_bytes(kind: str) -> dict[str, dict[str, float]]:
    """Our exchanges around one core: phase -> kind -> bytes of the full buffer."""
    model = gpt(HEADS * DIM, 1, HEADS, seq_len=SEQ_LEN)
    shard = Shard(micro_batch=BATCH, seq_len=SEQ_LEN, cp=RANKS, context_kind=kind)
    segment = layer_segment(model.stacks[0].layer(0), model, shard=shard, kernels=COUNTING, name="layer")
    found: dict[str, dict[str, float]] = {"forward": {}, "backward": {}}
    for operation in segment.operations:
        for phase, works in (("forward", operation.forward), ("backward", operation.input_grad)):
            for work in works:
                if isinstance(work, Collective) and work.axis == "cp":
                    found[phase][work.kind] = found[phase].get(work.kind, 0.0) + float(work.bytes)
    return found


LOCAL = 2 * BATCH * HEADS * SEQ_LEN // RANKS * DIM * 2
"""K and V of one rank in bf16."""


@pytest.mark.parametrize("kind", ["ring", "all-gather"])
def test_gathered_keys_and_values_are_torchs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gathers K and V once each way, and passes their fp32 gradients once around: `RANKS` messages of a rank's
    own K and V, which together are the full fp32 buffer that ours reduce-scatters.
    """
    ours, theirs = our_bytes(kind), torch_events("ALL_GATHER", monkeypatch)
    assert theirs["forward", "all_gather", RANKS] == (1, ours["forward"]["all_gather"]) == (1, RANKS * LOCAL)
    assert theirs["backward", "all_gather", RANKS] == (1, ours["backward"]["all_gather"])
    assert theirs["backward", "all_to_all", RANKS] == (RANKS, ours["backward"]["reduce_scatter"])
    assert len(theirs) == 3


def test_a_rotating_ring_sends_what_a_gather_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """RANKS - 1 messages of local K and V each way: the wire bytes of gathering the full buffer."""
    ours, theirs = our_bytes("ring"), torch_events("ALL_TO_ALL", monkeypatch)
    wire = (RANKS - 1) / RANKS
    assert theirs["forward", "all_to_all", RANKS] == (RANKS - 1, wire * ours["forward"]["all_gather"])
    # Backward: K and V as before, and RANKS messages of fp32 gradients (one more than a reduce-scatter needs).
    count, size = theirs["backward", "all_to_all", RANKS]
    assert count == 2 * RANKS - 1
    assert size == wire * ours["backward"]["all_gather"] + ours["backward"]["reduce_scatter"]
