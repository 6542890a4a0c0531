"""Tensor and sequence parallelism as Megatron-LM runs them: one rank's GPT with its collectives.

Column-parallel layers enter the tensor-parallel region, row-parallel ones leave it (Shoeybi 2019). Under sequence
parallelism the entering layer keeps its own shard of the input and gathers it again in backward (Korthikanti 2022
sec. 4.2.2; Megatron-LM `LinearWithGradAccumulationAndAsyncCommunication`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from simulator.spec.model import ModelSpec
from simulator.validate.torch_counts.blocks import parameter
from simulator.validate.torch_counts.functions import FlashAttention


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The group that splits a layer, and whether norms and dropouts split the sequence over it. Activations are
    [tokens, batch, width], so that a sequence's parts are contiguous.
    """

    group: Any
    sequence: bool

    @property
    def ranks(self) -> int:
        return int(self.group.size())

    def gather(self, x: Tensor) -> Tensor:
        """All parts of the sequence."""
        full = x.new_empty(x.shape[0] * self.ranks, *x.shape[1:])
        dist.all_gather_into_tensor(full, x.contiguous(), group=self.group)
        return full

    def scatter(self, x: Tensor) -> Tensor:
        """The sum over ranks of this rank's part of the sequence."""
        part = x.new_empty(x.shape[0] // self.ranks, *x.shape[1:])
        dist.reduce_scatter_tensor(part, x.contiguous(), group=self.group)
        return part

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        total = x.clone()
        dist.all_reduce(total, group=self.group)
        return total


class Enter(Function):
    """x W^T with W split by rows: gather the sequence first, or all-reduce the input gradient after."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, split: Split) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.split = split
        return (split.gather(x) if split.sequence else x) @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), split = ctx.saved_tensors, ctx.split
        full = split.gather(x) if split.sequence else x
        made = grad @ weight
        x_grad = split.scatter(made) if split.sequence else split.reduce(made)
        return x_grad, grad.flatten(0, -2).t() @ full.flatten(0, -2), None


class Leave(Function):
    """Sum the partial outputs of a row-parallel layer: all-reduce, or reduce-scatter with an all-gather in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, split: Split) -> Tensor:
        ctx.split = split
        return split.scatter(x) if split.sequence else split.reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (ctx.split.gather(grad) if ctx.split.sequence else grad), None


class SplitLoss(Function):
    """Cross entropy over a split vocabulary: all-reduces of row maxima, target logits and sums (Megatron-LM
    `vocab_parallel_cross_entropy`).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, split: Split) -> Tensor:
        wide = logits.float()
        highest = wide.amax(-1)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=split.group)
        wide = wide - highest[..., None]
        target = split.reduce(wide.gather(-1, targets[..., None])[..., 0])
        powers = wide.exp()
        total = split.reduce(powers.sum(-1))
        ctx.save_for_backward(powers / total[..., None], targets)
        ctx.dtype = logits.dtype
        return (total.log() - target).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        softmax, targets = ctx.saved_tensors
        result = softmax.scatter_add(-1, targets[..., None], -torch.ones_like(targets, dtype=softmax.dtype)[..., None])
        return (result * grad / targets.numel()).to(ctx.dtype), None, None


class SplitGpt(nn.Module):
    """One tensor-parallel rank of a GPT: vocabulary, heads and hidden units are split over the group."""

    def __init__(self, model: ModelSpec, split: Split, *, layers: int) -> None:
        super().__init__()
        width, ranks, self.split = model.hidden, split.ranks, split
        spec = model.stacks[0].layer(0)
        if spec.attention is None or spec.feed_forward is None:
            raise ValueError(model.name)
        self.tokens = parameter(model.embedding.vocab // ranks, width)
        heads, dim = spec.attention.heads // ranks, spec.attention.head_dim
        self.heads = heads
        self.layers = nn.ModuleList(
            nn.ParameterDict({
                "norm1": parameter(width), "norm2": parameter(width), "qkv": parameter(3 * heads * dim, width),
                "out": parameter(width, heads * dim), "up": parameter(spec.feed_forward.hidden // ranks, width),
                "down": parameter(width, spec.feed_forward.hidden // ranks),
            })
            for _ in range(layers)
        )  # fmt: skip
        self.norm = parameter(width)

    def forward(self, ids: Tensor) -> Tensor:
        """The loss of token ids [tokens, batch]."""
        local = ids % self.tokens.shape[0]
        x = Leave.apply(functional.embedding(local, self.tokens), self.split)
        for layer in self.layers:
            x = x + self._attention(self._norm(x, layer["norm1"]), layer)
            hidden = functional.gelu(Enter.apply(self._norm(x, layer["norm2"]), layer["up"], self.split))
            x = x + Leave.apply(hidden @ layer["down"].t(), self.split)
        logits = Enter.apply(self._norm(x, self.norm), self.tokens, self.split)
        return SplitLoss.apply(logits, local, self.split)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.layer_norm(x, weight.shape, weight)

    def _attention(self, x: Tensor, layer: Any) -> Tensor:
        qkv = Enter.apply(x, layer["qkv"], self.split).transpose(0, 1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in qkv.chunk(3, -1))
        context = FlashAttention.apply(q, k, v, None, None, None).flatten(2).transpose(0, 1)
        return Leave.apply(context @ layer["out"].t(), self.split)
