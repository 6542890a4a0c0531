"""Collectives that torch issues, recorded on one rank of a fake process group of any size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Event(NamedTuple):
    """One collective: its phase as the caller names it, its kind as `operations.Collective` names it, the ranks of its
    group and the bytes of its full buffer (gathered, unreduced, or what one rank holds for an all-to-all or a send).
    """

    phase: str
    kind: str
    ranks: int
    bytes: int


_KINDS = {
    "allreduce": "all_reduce", "all_reduce": "all_reduce", "allgather": "all_gather", "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all", "all_to_all": "all_to_all", "broadcast": "broadcast",
    "send": "send", "recv": "recv",
}  # fmt: skip
_NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")


class Recorder(TorchDispatchMode):
    """Records every collective that runs inside it; set `phase` between forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.phase = "forward"

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "namespace", "") in _NAMESPACES:
            name = function.__name__.split(".")[0].strip("_")
            kind = next((kind for prefix, kind in _KINDS.items() if name.startswith(prefix)), None)
            if kind is not None:
                self.events.append(Event(self.phase, kind, _ranks(args), _full_bytes(name, kind, args, result)))
        return result

    def totals(self) -> dict[tuple[str, str, int], tuple[int, int]]:
        """(phase, kind, ranks) -> (count, bytes)."""
        return tally(self.events)


def tally(events: list[Event]) -> dict[tuple[str, str, int], tuple[int, int]]:
    """(phase, kind, ranks) -> (count, bytes)."""
    counts: Counter[tuple[str, str, int]] = Counter()
    sizes: Counter[tuple[str, str, int]] = Counter()
    for event in events:
        counts[event[:3]] += 1
        sizes[event[:3]] += event.bytes
    return {key: (counts[key], sizes[key]) for key in counts}


def _bytes(value: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(value) if isinstance(t, torch.Tensor))


def _full_bytes(name: str, kind: str, args: Any, result: Any) -> int:
    """The large side: what a gather makes, what a scatter or an exchange is given. c10d's own operators take
    (outputs, inputs), functional ones the input only.
    """
    if name.startswith("allgather"):
        return _bytes(args[0])
    if kind == "all_gather":
        return _bytes(result)
    if name in {"reduce_scatter_base_", "reduce_scatter_", "reduce_scatter_base"} or name.startswith("alltoall"):
        return _bytes(args[1])
    return _bytes(args[0])


def _ranks(args: Any) -> int:
    for value in args:
        if isinstance(value, dist.ProcessGroup):
            return int(value.size())
        if isinstance(value, torch.ScriptObject):
            try:
                return int(dist.ProcessGroup.unbox(value).size())
            except (RuntimeError, TypeError):
                continue
        if isinstance(value, str):
            try:
                return int(dist.distributed_c10d._resolve_process_group(value).size())
            except (RuntimeError, ValueError, LookupError):
                continue
    return 0


@contextmanager
def fake_world(ranks: int, rank: int = 0) -> Iterator[None]:
    """This process as one rank of `ranks`: collectives move nothing, shapes are right."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        _forget_specs()


def _forget_specs() -> None:
    """DTensor keeps what it once derived, with the groups of that time: the next world's have other names."""
    from torch.distributed.tensor import _redistribute
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    _clear_sharding_prop_cache()
    _redistribute._gen_transform_infos.cache_clear()
