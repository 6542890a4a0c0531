"""Training steps of one case on one rank: micro-batches in schedule order, gradient reduction, optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from simulator.measure.parallel import Groups, build_parts, groups_for, replicated
from simulator.measure.suite import Case, model_of
from simulator.schedule.make import make_order
from simulator.schedule.order import FORWARD
from simulator.validate.torch_counts.tally import DTYPES

BUCKET_ELEMENTS = 25_000_000 // 4
"""DistributedDataParallel's bucket of 25 MB, in fp32."""


class Trainer:
    """A case on this rank: `step()` runs one training step."""

    def __init__(self, case: Case, rank: int) -> None:
        self.case, self.strategy, self.rank = case, case.strategy, rank
        lone = Groups(by_axis=dict.fromkeys(("tp", "cp", "dp", "pp", "ep", "edp", "dp_cp")), place={"pp": 0})
        self.groups = groups_for(self.strategy, rank) if self.strategy.devices > 1 else lone
        with default_dtype(DTYPES[case.run.precision]):
            self.parts = build_parts(case, self.groups)
        self.micro_batches = case.run.global_batch // (self.strategy.micro_batch * self.strategy.dp)
        self.ids = [self._tokens() for _ in range(self.micro_batches)]
        self.wrapped: nn.Module | None = None
        self._wrap()
        parameters = [p for part in self.parts.values() for p in part.parameters()]
        self.flat = Flat(parameters, self.groups.by_axis["dp_cp"]) if self.strategy.zero == 1 else None
        held = [self.flat.shard] if self.flat else parameters
        self.optimizer = optimizer_of(case.run.optimizer, held)
        self.order = make_order(self.strategy.schedule, pp=self.strategy.pp, micro_batches=self.micro_batches,
                                vp=self.strategy.vp).of_rank(self.groups.place["pp"])  # fmt: skip

    def _tokens(self) -> Tensor:
        size = (self.strategy.micro_batch, self.case.run.seq_len // self.strategy.cp)
        return torch.randint(0, model_of(self.case.model).embedding.vocab, size)

    def _wrap(self) -> None:
        """FSDP for ZeRO-3; DistributedDataParallel where every parameter is shared by the same ranks."""
        group = self.groups.by_axis["dp_cp"]
        if group is None or self.strategy.pp > 1:
            return
        model = self.parts[0]
        if self.strategy.zero == 3:
            from torch.distributed.device_mesh import DeviceMesh
            from torch.distributed.fsdp import fully_shard

            mesh = DeviceMesh.from_group(group, "cpu")
            for layer in layers_of(model):
                fully_shard(layer, mesh=mesh)
            self.wrapped = fully_shard(model, mesh=mesh)
        elif self.strategy.zero == 0 and self.strategy.ep == 1:
            from torch.nn.parallel import DistributedDataParallel

            self.wrapped = DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True)

    def step(self) -> None:
        """Forward and backward of every micro-batch, reduction, update."""
        if self.strategy.pp > 1:
            self._pipeline()
        else:
            self._plain()
        if self.wrapped is None:
            self._reduce()
        if self.strategy.sequence_parallel:
            reduce_in_buckets(replicated(self.parts), self.groups.by_axis["tp"], mean=False)
        self.optimizer.step()
        if self.flat:
            self.flat.gather()
        self.optimizer.zero_grad(set_to_none=True)

    def _plain(self) -> None:
        model = self.wrapped or self.parts[0]
        for index, ids in enumerate(self.ids):
            last = index == len(self.ids) - 1
            no_sync = getattr(model, "no_sync", None)
            with nullcontext() if last or no_sync is None else no_sync():
                (model(ids, ids) / self.micro_batches).backward()

    def _pipeline(self) -> None:
        """The same order of tasks that the engine simulates; sends do not block, receives do."""
        inputs: dict[tuple[int, int], Tensor] = {}
        outputs: dict[tuple[int, int], Tensor] = {}
        sends: list[tuple[Any, Tensor]] = []
        last = self.strategy.stages - 1
        for stage, index, kind in self.order:
            key = stage, index
            if kind == FORWARD:
                inputs[key] = self.ids[index] if stage == 0 else self._receive(stage - 1, index)
                outputs[key] = self.parts[stage](inputs[key], self.ids[index])
                if stage < last:
                    sends.append(self._send(outputs[key].detach(), stage + 1, index))
            else:
                given, made = inputs.pop(key), outputs.pop(key)
                if stage == last:
                    (made / self.micro_batches).backward()
                else:
                    made.backward(self._receive(stage + 1, index, gradient=True))
                if stage > 0 and given.grad is not None:
                    sends.append(self._send(given.grad, stage - 1, index, gradient=True))
        for work, _ in sends:
            work.wait()

    def _peer(self, stage: int) -> int:
        others = self.strategy.devices // self.strategy.pp
        return stage % self.strategy.pp * others + self.rank % others

    def _tag(self, stage: int, index: int, gradient: bool) -> int:
        return (stage * self.micro_batches + index) * 2 + int(gradient)

    def _send(self, tensor: Tensor, stage: int, index: int, *, gradient: bool = False) -> tuple[Any, Tensor]:
        tensor = tensor.contiguous()
        return dist.isend(tensor, self._peer(stage), tag=self._tag(stage, index, gradient)), tensor

    def _receive(self, stage: int, index: int, *, gradient: bool = False) -> Tensor:
        width = model_of(self.case.model).hidden
        tensor = torch.empty(*self.ids[0].shape, width)
        here = stage - 1 if gradient else stage + 1
        dist.recv(tensor, self._peer(stage), tag=self._tag(here, index, gradient))
        return tensor.requires_grad_(not gradient)

    def _reduce(self) -> None:
        """Mean of the gradients over the ranks that share them: experts' replicas, dp and cp for the rest."""
        if self.flat:
            self.flat.scatter()
            return
        experts: list[nn.Parameter] = []
        dense: list[nn.Parameter] = []
        for part in self.parts.values():
            for name, value in part.named_parameters():
                held = self.strategy.ep > 1 and (".moe.up" in name or ".moe.down" in name)
                (experts if held else dense).append(value)
        for parameters, group in ((dense, self.groups.by_axis["dp_cp"]), (experts, self.groups.by_axis["edp"])):
            if group is not None:
                reduce_in_buckets(parameters, group)


def optimizer_of(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's fused AdamW, or its fused SGD with momentum."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, fused=True)
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New floating-point tensors are of this dtype inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a stage or of a whole reference model."""
    from simulator.validate.torch_counts.model import Layer

    return [module for module in model.modules() if isinstance(module, Layer)]


def reduce_in_buckets(parameters: list[nn.Parameter], group: Any, *, mean: bool = True) -> None:
    """All-reduce gradients through flat buckets: their mean over the group, or their sum."""
    bucket: list[Tensor] = []
    for place, parameter in enumerate(parameters):
        bucket.append(parameter.grad)
        if place == len(parameters) - 1 or sum(g.numel() for g in bucket) >= BUCKET_ELEMENTS:
            flat = torch.cat([grad.flatten() for grad in bucket])
            dist.all_reduce(flat, group=group)
            if mean:
                flat /= dist.get_world_size(group)
            for grad, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                grad.copy_(part.view_as(grad))
            bucket = []


class Flat:
    """ZeRO-1: parameters and gradients as views of flat buffers, one shard of which this rank updates."""

    def __init__(self, parameters: list[nn.Parameter], group: Any) -> None:
        self.group, self.ranks = group, dist.get_world_size(group)
        count = -(-sum(p.numel() for p in parameters) // self.ranks) * self.ranks
        self.values, self.gradients, self.parameters = torch.zeros(count), torch.zeros(count), parameters
        place = 0
        for parameter in parameters:
            part = self.values[place : place + parameter.numel()].view_as(parameter)
            part.copy_(parameter.detach())
            parameter.data = part
            place += parameter.numel()
        self.size = count // self.ranks
        me = dist.get_rank(group)
        self.shard = nn.Parameter(self.values[me * self.size : (me + 1) * self.size].clone())

    def scatter(self) -> None:
        """Flat gradients, summed and scattered into the shard's."""
        used = self.gradients[: sum(p.numel() for p in self.parameters)]
        torch.cat([p.grad.flatten() for p in self.parameters], out=used)
        part = torch.empty(self.size)
        dist.reduce_scatter_tensor(part, self.gradients, group=self.group)
        self.shard.grad = part.div_(self.ranks)
        for parameter in self.parameters:
            parameter.grad = None

    def gather(self) -> None:
        """Every rank's updated shard into the parameters."""
        dist.all_gather_into_tensor(self.values, self.shard.detach(), group=self.group)
