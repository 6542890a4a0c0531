"""What ranks exchange inside a forward and backward pass, as autograd functions over gloo."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


class Enter(Function):
    """Into a column-parallel layer: as it is; its gradient is summed over the group (Shoeybi 2019, f)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class Leave(Function):
    """Out of a row-parallel layer: summed over the group; the gradient as it is (Shoeybi 2019, g)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:  # noqa: ARG004 - autograd's signature
        x = x.contiguous()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - autograd's signature
        return grad, None


class Gather(Function):
    """All ranks' parts joined along the first dim. The gradient is summed and scattered, or (`own`) just cut."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, own: bool) -> Tensor:
        ranks = dist.get_world_size(group)
        ctx.group, ctx.own, ctx.rows = group, own, x.shape[0]
        full = x.new_empty(ranks * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(full, x.contiguous(), group=group)
        return full

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if ctx.own:
            me = dist.get_rank(ctx.group)
            return grad[me * ctx.rows : (me + 1) * ctx.rows], None, None
        part = grad.new_empty(ctx.rows, *grad.shape[1:])
        dist.reduce_scatter_tensor(part, grad.contiguous(), group=ctx.group)
        return part, None, None


class Exchange(Function):
    """All-to-all of equal parts along the first dim; its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _exchanged(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchanged(grad, ctx.group), None


def _exchanged(x: Tensor, group: Any) -> Tensor:
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, x.contiguous(), group=group)
    return received
