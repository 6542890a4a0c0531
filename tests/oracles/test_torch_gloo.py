"""Real gloo ranks on this machine's loopback issue the collectives that one fake rank does, in the same order, and
loopback carries the bytes that we count for them.
"""

from __future__ import annotations

from typing import Any

import pytest

from simulator.cluster.gloo import gloo_wire_bytes
from simulator.spec.strategy import Strategy
from tests.oracles.gloo_ranks import KINDS, SIZES, STEPS, Ran, run_ranks
from tests.support import gpt

torch = pytest.importorskip("torch")

from simulator.validate.torch_counts.collectives import Recorder, fake_world  # noqa: E402
from tests.oracles.test_torch_collectives import only_stage, stage_totals, zero3_totals  # noqa: E402


def step(kind: str, ranks: int, *, large: bool = False) -> list[list[Any]]:
    """One forward and backward of a small GPT; every collective as [phase, kind, ranks, bytes]. In a large one nearly
    all have 1 MiB and more.
    """
    import torch.distributed as dist

    from simulator.validate.torch_counts.tensor_parallel import Split, SplitGpt

    torch.manual_seed(0)
    model = gpt(512, 2, 8, vocab=2048, seq_len=512) if large else gpt(64, 2, 4, vocab=128, seq_len=16)
    tokens = model.seq_len
    if kind == "fsdp":
        return _fsdp_step(model, ranks)
    module = SplitGpt(model, Split(group=dist.group.WORLD, sequence=kind == "tp+sp"), layers=2)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    with Recorder() as recorder:
        loss = module(torch.zeros(tokens, 2, dtype=torch.int64))
        recorder.phase = "backward"
        loss.backward()
    return [list(event) for event in recorder.events]


def _fsdp_step(model: Any, ranks: int) -> list[list[Any]]:
    from dataclasses import replace

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from simulator.arch.parameters import COUNTING
    from simulator.parallel.recompute import Policy
    from simulator.validate.torch_counts.blocks import Setting
    from simulator.validate.torch_counts.tally import build

    kernels = replace(COUNTING, activation_dtype="fp32", gemm_dtype="fp32")
    module = build(Setting(model=model, kernels=kernels, policy=Policy()))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in module.stacks[0].layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    with Recorder() as recorder:
        loss = module(torch.zeros(2, 16, dtype=torch.int64))
        recorder.phase = "backward"
        loss.backward()
    return [list(event) for event in recorder.events]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Ran]:
    """What two and four real ranks did."""
    return {ranks: run_ranks(ranks, tmp_path_factory.mktemp(f"gloo{ranks}")) for ranks in (2, 4)}


@pytest.mark.loopback
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", STEPS)
def test_real_ranks_issue_the_same_sequence(kind: str, ranks: int, ran: dict[int, Ran]) -> None:
    with fake_world(ranks):
        expected = step(kind, ranks)
    assert len(expected) > 4
    for rank in range(ranks):
        assert ran[ranks].events[rank][kind] == expected


@pytest.mark.loopback
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_loopback_carries_the_bytes_of_a_collective(kind: str, ranks: int, ran: dict[int, Ran]) -> None:
    """All ranks together, and TCP's headers, acknowledgements and two barriers: less than 1 % from 1 MiB up."""
    for size in SIZES:
        senders = 1 if kind == "send" else ranks
        expected = senders * gloo_wire_bytes(kind, float(size), ranks)
        assert 1.0 < ran[ranks].loopback[f"{kind} {size}"] / expected < 1.01


@pytest.mark.loopback
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", STEPS)
def test_loopback_carries_the_bytes_of_a_step(kind: str, ranks: int, ran: dict[int, Ran]) -> None:
    """The collectives that our program has for the step, at gloo's bytes each."""
    model = gpt(512, 2, 8, vocab=2048, seq_len=512)
    if kind == "fsdp":
        ours = zero3_totals(model, ranks, "fp32", reshard=True)
    else:
        strategy = Strategy(tp=ranks, micro_batch=2, sequence_parallel=kind == "tp+sp")
        ours = stage_totals(only_stage(model, strategy, "fp32"), "tp", ranks)
    expected = sum(ranks * gloo_wire_bytes(name, float(size), ranks) for (_, name, _), (_, size) in ours.items())
    assert expected > ranks * 2**20
    assert 1.0 < ran[ranks].loopback[kind] / expected < 1.01
