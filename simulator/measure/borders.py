"""What ranks exchange inside a forward and backward pass, as autograd functions over gloo."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


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
        ctx.group, ctx.own, ctx.rows = group, own, x.shape[0]
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if ctx.own:
            me = dist.get_rank(ctx.group)
            return grad[me * ctx.rows : (me + 1) * ctx.rows], None, None
        return _scattered(grad, ctx.group), None, None


class Scatter(Function):
    """Out of a row-parallel layer under sequence parallelism: summed, and this rank's rows kept; its gradient is
    gathered (Korthikanti 2022 sec. 4.2.2, g-bar).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _scattered(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gathered(grad, ctx.group), None


class GatheredLinear(Function):
    """A column-parallel product under sequence parallelism: it keeps this rank's rows and gathers all of them in
    forward and again in backward; the input's gradient is summed and scattered (Korthikanti 2022 sec. 4.2.2, g).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.has_bias = group, bias is not None
        return functional.linear(_gathered(x, group), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        full = _gathered(x, ctx.group).flatten(0, -2)
        into = (rows @ weight).view(*grad.shape[:-1], weight.shape[1])
        return _scattered(into, ctx.group), rows.t() @ full, rows.sum(0) if ctx.has_bias else None, None


class Shared(Function):
    """A parameter that every rank holds whole and adds to a partial sum: its share forward, its whole gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:  # noqa: ARG004 - autograd's signature
        return x / dist.get_world_size(group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - autograd's signature
        return grad, None


def _gathered(x: Tensor, group: Any) -> Tensor:
    full = x.new_empty(dist.get_world_size(group) * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(full, x.contiguous(), group=group)
    return full


def _scattered(x: Tensor, group: Any) -> Tensor:
    part = x.new_empty(x.shape[0] // dist.get_world_size(group), *x.shape[1:])
    dist.reduce_scatter_tensor(part, x.contiguous(), group=group)
    return part


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
