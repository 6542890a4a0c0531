"""Pipeline sends and receives equal those that torch's pipeline runtime issues, on a fake group."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.parallel.lower import lower
from simulator.schedule.make import make_order
from simulator.schedule.order import BACKWARD, FORWARD, INPUT_GRAD
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from tests.support import gpt

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from simulator.validate.torch_counts.collectives import Recorder, fake_world  # noqa: E402

RANKS, MICRO_BATCHES, WIDTH, TOKENS = 4, 8, 64, 32
SCHEDULES = {
    "gpipe": ("ScheduleGPipe", 1), "1f1b": ("Schedule1F1B", 1), "interleaved": ("ScheduleInterleaved1F1B", 2),
    "zbv": ("ScheduleZBVZeroBubble", 2), "dualpipev": ("ScheduleDualPipeV", 2),
}  # fmt: skip


def torch_sends(name: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(kind, bytes) of every send and receive of one rank in one step."""
    from torch.distributed import pipelining
    from torch.distributed.pipelining import schedules
    from torch.distributed.pipelining._utils import InferenceMode
    from torch.distributed.pipelining.stage import PipelineStage

    kind, virtual = SCHEDULES[name]

    def static(_: Any, stages: list[Any], *__: Any) -> None:
        """Shapes are given; the vote about them would read a tensor's value."""
        for stage in stages:
            stage._inference_mode = InferenceMode.STATIC

    monkeypatch.setattr(schedules._PipelineSchedule, "_warmup_p2p", static)
    with fake_world(RANKS, rank), FakeTensorMode():
        x = torch.zeros(1, TOKENS, WIDTH)
        stages = []
        for index in owned(name, rank, virtual):
            grad = torch.zeros(1, TOKENS, WIDTH)
            stages.append(
                PipelineStage(
                    nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()), index, RANKS * virtual, torch.device("cpu"),
                    input_args=(x,),
                    output_args=(x,), input_grads=(grad,), output_grads=(grad,),
                )
            )  # fmt: skip
        maker: Any = getattr(pipelining, kind)
        schedule = maker(
            stages if virtual > 1 else stages[0], MICRO_BATCHES, loss_fn=lambda made, target: (made - target).sum()
        )
        inputs = torch.zeros(MICRO_BATCHES, TOKENS, WIDTH)
        last = any(stage.is_last for stage in stages)
        with Recorder() as recorder:
            schedule.step(
                *((inputs,) if any(stage.is_first for stage in stages) else ()),
                **({"target": inputs, "losses": []} if last else {}),
            )
    return [(event.kind, event.bytes) for event in recorder.events if event.kind in {"send", "recv"}]


def owned(name: str, rank: int, virtual: int) -> tuple[int, ...]:
    """Stages of a rank: in loops, or in a V."""
    if virtual == 1:
        return (rank,)
    return (rank, 2 * RANKS - 1 - rank) if name in {"zbv", "dualpipev"} else (rank, rank + RANKS)


def our_sends(name: str, rank: int) -> tuple[int, float]:
    """How many activations and gradients our order sends from a rank, and the bytes of each."""
    virtual = SCHEDULES[name][1]
    stages = RANKS * virtual
    order = make_order(name, pp=RANKS, micro_batches=MICRO_BATCHES, vp=virtual)
    count = 0
    for task in range(order.rank_start[rank], order.rank_start[rank + 1]):
        forward, slot = order.kind[task] == FORWARD, order.slot[task]
        neighbour = order.following[slot] if forward else order.previous[slot]
        sends = order.kind[task] in {FORWARD, INPUT_GRAD, BACKWARD}
        count += int(sends and neighbour >= 0 and order.slot_rank[neighbour] != rank)
    model = gpt(WIDTH, stages, 4, vocab=128, seq_len=TOKENS)
    run = Run(global_batch=MICRO_BATCHES, precision="fp32")
    plain = Framework(name="plain", vocab_multiple=1)
    program = lower(model, run, Strategy(pp=RANKS, vp=virtual), plain)
    return count, float(program.stages[0].boundary_bytes)


@pytest.mark.parametrize("rank", [0, 1, RANKS - 1])
@pytest.mark.parametrize("name", SCHEDULES)
def test_sends_and_receives_are_torchs(name: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count, size = our_sends(name, rank)
    events = torch_sends(name, rank, monkeypatch)
    assert [kind for kind, _ in events].count("send") == [kind for kind, _ in events].count("recv") == count
    assert {sent for _, sent in events} == {size}
