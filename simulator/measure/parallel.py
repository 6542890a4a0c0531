"""One rank's part of a model: the reference blocks at local sizes, with the exchanges that each split needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from simulator import catalog
from simulator.measure import blocks
from simulator.measure.borders import Enter, Exchange, Gather, GatheredLinear, Leave, Scatter, Shared
from simulator.measure.suite import Case, model_of
from simulator.parallel.lower import kernels_of, layers_of_stages
from simulator.parallel.recompute import policy_of
from simulator.spec.model import LayerSpec, ModelSpec
from simulator.spec.strategy import Strategy
from simulator.validate.torch_counts import blocks as reference
from simulator.validate.torch_counts.blocks import Setting, full_norm
from simulator.validate.torch_counts.experts import Experts
from simulator.validate.torch_counts.model import Embedding, Head, Layer, Reference, Tables, cross_entropy


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Communication groups of this rank by axis, and its place on each."""

    by_axis: Mapping[str, Any]
    place: Mapping[str, int]


def groups_for(strategy: Strategy, rank: int) -> Groups:
    """Groups of neighbouring ranks, tp innermost, then cp, dp and pp; ep takes its ranks from dp. Collective."""
    sizes = {"tp": strategy.tp, "cp": strategy.cp, "dp": strategy.dp, "pp": strategy.pp}
    by_axis: dict[str, Any] = {}
    place: dict[str, int] = {}
    stride = 1
    for axis, size in sizes.items():
        place[axis] = rank // stride % size
        by_axis[axis] = _strided(strategy.devices, size, stride, rank)
        stride *= size
    by_axis["ep"] = _strided(strategy.devices, strategy.ep, strategy.tp * strategy.cp, rank)
    outer = strategy.tp * strategy.cp * strategy.ep
    by_axis["edp"] = _strided(strategy.devices, strategy.dp // strategy.ep, outer, rank)
    by_axis["dp_cp"] = _strided(strategy.devices, strategy.dp * strategy.cp, strategy.tp, rank)
    return Groups(by_axis=by_axis, place=place)


def _strided(world: int, size: int, stride: int, rank: int) -> Any:
    """The group of this rank among all groups of `size` ranks `stride` apart; None for one rank."""
    mine = None
    if size == 1:
        return None
    for first in range(world):
        if first // stride % size == 0:
            members = [first + index * stride for index in range(size)]
            group = dist.new_group(members)
            mine = group if rank in members else mine
    return mine


def local_model(model: ModelSpec, strategy: Strategy) -> ModelSpec:
    """The model as one tensor-parallel and expert-parallel rank holds it: fewer heads, hidden units and experts."""
    stacks = tuple(
        replace(stack, runs=tuple((_local_layer(layer, strategy), count) for layer, count in stack.runs))
        for stack in model.stacks
    )
    embedding = replace(model.embedding, vocab=model.embedding.vocab // strategy.tp)
    return replace(model, stacks=stacks, embedding=embedding)


def _local_layer(layer: LayerSpec, strategy: Strategy) -> LayerSpec:
    tp = strategy.tp
    changes: dict[str, Any] = {}
    for name in ("attention", "cross_attention"):
        spec = getattr(layer, name)
        if spec is not None:
            changes[name] = replace(spec, heads=spec.heads // tp, kv_heads=spec.kv_heads // tp)
    if layer.feed_forward is not None:
        changes["feed_forward"] = replace(layer.feed_forward, hidden=layer.feed_forward.hidden // tp)
    return replace(layer, **changes)


class ColumnLinear(blocks.Linear):
    """A product whose input lies spread over the tensor ranks (sequence parallelism)."""

    group: Any

    def forward(self, x: Tensor) -> Any:
        result = GatheredLinear.apply(x, self.weight, self.bias, self.group)
        return result if len(self.parts) == 1 else result.split(self.parts, -1)


class RowLinear(blocks.Linear):
    """A product whose output is a partial sum: each tensor rank adds its share of the bias, which all hold whole."""

    group: Any

    def forward(self, x: Tensor) -> Any:
        return functional.linear(x, self.weight, None if self.bias is None else Shared.apply(self.bias, self.group))


class SplitLayer(Layer):
    """A layer whose blocks are column- then row-parallel over tp.

    Under sequence parallelism norms and residuals see this rank's part of the tokens: tensors are split along their
    first dim as in Megatron-LM, which here is the batch.
    """

    def __init__(
        self, spec: LayerSpec, setting: Setting, *, after: bool, groups: Groups, sequence: bool = False
    ) -> None:
        super().__init__(spec, setting, after=after)
        self.group, self.sequence = groups.by_axis["tp"], sequence
        if self.group is not None:
            self._split(sequence)
        if spec.experts is not None and groups.by_axis["ep"] is not None:
            self.moe = SplitExperts(spec.experts, setting, groups.by_axis["ep"])
        if spec.attention is not None and groups.by_axis["cp"] is not None:
            self.attention.__class__ = GatheredAttention
            self.attention.group = groups.by_axis["cp"]

    def _split(self, sequence: bool) -> None:
        """Give the first and the last product of each block its part of the exchange."""
        for block in (getattr(self, name) for name in ("attention", "mlp") if hasattr(self, name)):
            last, first = ("out", "qkv") if isinstance(block, reference.Attention) else ("down", "up")
            for name, kind in ((last, RowLinear), *(((first, ColumnLinear),) if sequence else ())):
                product = getattr(block, name)
                product.__class__, product.group = kind, self.group

    def _block(self, name: str, x: Tensor, memory: Tensor | None, bias: Tensor | None, tables: Tables) -> Tensor:
        if self.group is None:
            return super()._block(name, x, memory, bias, tables)
        if self.sequence:
            return Scatter.apply(super()._block(name, x, memory, bias, tables), self.group)
        made = super()._block(name, Enter.apply(x, self.group), memory, bias, tables)
        return Leave.apply(made, self.group)


class GatheredAttention(blocks.Attention):
    """Context parallelism: this rank's queries see all ranks' keys and values, gathered (Llama 3 sec. 3.3.2)."""

    group: Any

    def _core(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        both = Gather.apply(torch.stack((k, v)).transpose(0, 2).contiguous(), self.group, False)
        keys, values = both.transpose(0, 2).unbind(0)
        return super()._core(q, keys, values, bias, mask)


class SplitExperts(Experts):
    """Experts spread over ep: padded buffers travel to their expert's rank and back."""

    def __init__(self, spec: Any, setting: Setting, group: Any) -> None:
        super().__init__(spec, setting)
        self.group, self.ranks = group, dist.get_world_size(group)
        held = spec.count // self.ranks
        self.up = nn.Parameter(self.up[:held].clone())
        self.down = nn.Parameter(self.down[:held].clone())

    def _routed(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x)
        order = self._slots(chosen)
        token = order // self.spec.visited
        rows = x.index_select(0, token)
        sent = Exchange.apply(rows, self.group)
        held, width = self.up.shape[0], x.shape[-1]
        local = sent.view(self.ranks, held, -1, width).transpose(0, 1).reshape(held, -1, width)
        made = torch.bmm(self._activated(torch.bmm(local, self.up)), self.down)
        back = made.view(held, self.ranks, -1, width).transpose(0, 1).reshape(-1, width)
        rows = Exchange.apply(back, self.group)
        weighted = rows * weights.flatten().index_select(0, order)[:, None]
        return torch.zeros_like(x).index_add(0, token, weighted)


class SplitEmbedding(Embedding):
    """A slice of the vocabulary: tokens of other ranks give zeros, and the group sums."""

    group: Any
    sequence: bool

    def forward(self, ids: Tensor) -> Tensor:
        held = self.tokens.shape[0]
        local = ids - dist.get_rank(self.group) * held
        outside = (local < 0) | (local >= held)
        x = functional.embedding(local.masked_fill(outside, 0), self.tokens).masked_fill(outside[..., None], 0.0)
        if self.positions is not None:
            x = x + Shared.apply(self.positions[: ids.shape[1]], self.group)
        x = (Scatter if self.sequence else Leave).apply(x, self.group)
        return x if self.norm is None else self.norm(x)


class SplitHead(Head):
    """Logits of a slice of the vocabulary, gathered for the loss."""

    group: Any
    sequence: bool

    def forward(self, x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        weight = table if self.weight is None else self.weight
        if self.sequence:
            logits = GatheredLinear.apply(x, weight, None, self.group)
        else:
            logits = functional.linear(Enter.apply(x, self.group), weight)
        everyone = Gather.apply(logits.unsqueeze(0), self.group, True)
        return cross_entropy(torch.cat(everyone.unbind(0), -1), targets, self.setting.kernels)


class Part(nn.Module):
    """The layers of one pipeline stage, with the embedding on the first and the loss on the last."""

    def __init__(
        self, setting: Setting, groups: Groups, *, stage: int, stages: int, sequence: bool = False
    ) -> None:
        super().__init__()
        self.setting = setting
        stack = setting.model.stacks[0]
        counts = layers_of_stages(stack.layers, stages)
        first = sum(counts[:stage])
        kinds = [stack.layer(index) for index in range(first, first + counts[stage])]
        after = not stack.final_norm
        self.layers = nn.ModuleList(
            SplitLayer(kind, setting, after=after, groups=groups, sequence=sequence) for kind in kinds
        )
        self.embedding = Embedding(setting) if stage == 0 else None
        self.norm = full_norm(setting) if stage == stages - 1 and stack.final_norm else None
        self.head = Head(setting) if stage == stages - 1 else None
        if groups.by_axis["tp"] is not None:
            for module, kind in ((self.embedding, SplitEmbedding), (self.head, SplitHead)):
                if module is not None:
                    module.__class__ = kind
                    module.group, module.sequence = groups.by_axis["tp"], sequence
        self.tables: Tables | None = None

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """Hidden states, or the loss on the last stage; `x` is token ids on the first."""
        if self.tables is None:
            self.tables = Tables(next(self.parameters()).dtype, x.device)
        if self.embedding is not None:
            x = self.embedding(x)
        for layer in self.layers:
            x = layer(x, None, None, self.tables)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.head is None else self.head(x, x, targets)


def setting_of(case: Case) -> Setting:
    """What the reference blocks run for a case, at this rank's local sizes."""
    model = model_of(case.model)
    framework = catalog.load_framework(case.run.framework)
    kernels = kernels_of(model, case.run, framework, case.strategy)
    return Setting(model=local_model(model, case.strategy), kernels=kernels, policy=policy_of(case.strategy))


def build_parts(case: Case, groups: Groups) -> dict[int, nn.Module]:
    """This rank's stages, ready to train, by stage. Encoder-decoders are one stage."""
    setting, strategy = setting_of(case), case.strategy
    if len(setting.model.stacks) > 1:
        return {0: blocks.trained(Reference(setting))}
    held = [strategy.pp * chunk + groups.place["pp"] for chunk in range(strategy.vp)]
    return {
        stage: blocks.trained(
            Part(setting, groups, stage=stage, stages=strategy.stages, sequence=strategy.sequence_parallel)
        )
        for stage in held
    }


def replicated(parts: Mapping[int, nn.Module]) -> list[nn.Parameter]:
    """Parameters that under sequence parallelism see only this rank's tokens: the norms'."""
    norms = [module for part in parts.values() for module in part.modules() if isinstance(module, reference.Norm)]
    return [value for norm in norms for value in norm.parameters(recurse=False)]
