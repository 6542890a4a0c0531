"""How kernels slow while other ranks run too, and what torch's sharding costs the host: micro-benchmarks on ranks."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from simulator.calibrate.fit import fit_sum
from simulator.calibrate.kernels import shared_benches
from simulator.calibrate.reference import Reference
from simulator.calibrate.worker import copies_of, time_bench

RESIDENT_ELEMENTS = 6_000_000
"""Elements of the inputs of each bench that a rank keeps: ranks at once exceed the last cache together."""
Timed = dict[str, dict[str, list[float]]]
"""Seconds by what was timed and by how many ranks ran at once."""


class Shared:
    """The shared benches of this rank (one of `every`) with their inputs, and the reference kernels."""

    def __init__(self, every: int = 1) -> None:
        self.benches = shared_benches()[::every]
        self.copies = [copies_of(bench, RESIDENT_ELEMENTS) for bench in self.benches]
        self.reference = Reference()
        self.timed: Timed = {}

    def time(self, counts: Sequence[int], rank: int, turn: int) -> None:
        """Time every bench and the reference kernels on 1, 2, ... ranks at once. Collective.

        Every rank takes the benches in an order of its own, as ranks of a training step are at different places: a
        product runs beside what streams through the memory, and both find the caches that the other left.
        """
        for count in (1, *counts):
            dist.barrier()
            order = list(range(len(self.benches)))
            random.Random(100 * turn + rank).shuffle(order)  # noqa: S311
            for index in order if rank < count else []:
                self._time_bench(index, count)
        dist.barrier()

    def _time_bench(self, index: int, count: int) -> None:
        bench = self.benches[index]
        charged = bench.forward or ("", 0.0)
        forward, backward = time_bench(bench, self.copies[index])
        kind = "matrix" if isinstance(charged[1], Mapping) else "moving"
        _add(self.timed, f"{kind} {index}", count, forward + (backward or 0.0))
        for name, seconds in self.reference.seconds().items():
            _add(self.timed, name, count, seconds)


def _add(into: Timed, name: str, count: int, seconds: float) -> None:
    into.setdefault(name, {}).setdefault(str(count), []).append(seconds)


def slowdowns(answers: Sequence[Timed]) -> dict[str, dict[str, float]]:
    """Times on so many ranks at once over those on one: geometric means over "matrix" and "moving" benches, and the
    reference kernels "product" and "memory"; medians over turns, means over ranks.
    """
    result: dict[str, dict[str, float]] = {}
    for count in answers[0]["product"]:
        ratios: dict[str, list[float]] = {}
        for name, alone in answers[0].items():
            here = [statistics.median(answer[name][count]) for answer in answers if count in answer.get(name, {})]
            ratio = statistics.mean(here) / statistics.median(alone["1"])
            ratios.setdefault(name.partition(" ")[0], []).append(ratio)
        result[count] = {kind: statistics.geometric_mean(each) for kind, each in ratios.items()}
    return result


WIDTH = 16
UNITS, TENSORS = (2, 8), (2, 12)
UNIT_BYTES = 4 * WIDTH * TENSORS[0]
HOST_TURNS = 9


class _Scales(nn.Module):
    """So many tiny parameters: what is left of a unit's time is the host's bookkeeping."""

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(WIDTH)) for _ in range(tensors)])

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scales:
            x = x * scale
        return x


def time_sharding(group: Any, exchange_s: float) -> dict[str, float]:
    """Host seconds of FSDP2 beyond its collectives, per pass ("call_s"), per unit and per parameter tensor. Collective.

    Passes over units of tiny parameters (forward, backward, update), sharded and not; what they differ by, less what a
    unit exchanges (`exchange_s`: two gathers and a scatter of UNIT_BYTES), is bookkeeping: hooks, distributed tensors,
    buffers.
    """
    from torch.distributed.device_mesh import DeviceMesh

    mesh = DeviceMesh.from_group(group, "cpu")
    passes = {(units, tensors, sharded): _pass(units, tensors, mesh if sharded else None)
              for units in UNITS for tensors in TENSORS for sharded in (False, True)}  # fmt: skip
    times: dict[tuple[int, int, bool], list[float]] = {key: [] for key in passes}
    for turn in range(HOST_TURNS + 1):
        for key, run in passes.items():
            dist.barrier(group)
            start = time.process_time()
            run()
            if turn:
                times[key].append(time.process_time() - start)
    middle = {key: statistics.median(seconds) for key, seconds in times.items()}
    entries = [({"call_s": 1.0, "unit_s": float(units), "tensor_s": float(units * tensors)},
                max(middle[units, tensors, True] - middle[units, tensors, False], 1e-6))
               for units in UNITS for tensors in TENSORS]  # fmt: skip
    fitted, _ = fit_sum(entries)
    return fitted | {"unit_s": max(fitted["unit_s"] - exchange_s, 0.0)}


def _pass(units: int, tensors: int, mesh: Any) -> Callable[[], None]:
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(*(_Scales(tensors) for _ in range(units)))
    if mesh is not None:
        for unit in model:
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)
    update = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def run() -> None:
        model(torch.ones(WIDTH)).sum().backward()
        update.step()
        update.zero_grad(set_to_none=True)

    return run
