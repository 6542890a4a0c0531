"""Fused kernels as autograd functions: what they compute, and the tensors they keep for backward.

Each is the executable definition of a `Kernels` option. Matrix products inside are ordinary torch operators, so a
FLOP counter sees what the kernel executes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class FusedNorm(Function):
    """LayerNorm (with `centred`) or RMSNorm in one kernel: keeps its input and fp32 statistics per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, centred: bool, eps: float) -> Tensor:
        wide = x.float()
        mean = wide.mean(-1, keepdim=True) if centred else None
        centre = wide - mean if mean is not None else wide
        scale = torch.rsqrt(centre.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.with_bias = bias is not None
        result = (centre * scale).to(x.dtype) * weight
        return result if bias is None else result + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        centre = x.float() - mean if mean is not None else x.float()
        normal, scaled = centre * scale, grad.float() * weight.float()
        along = scaled - normal * (scaled * normal).mean(-1, keepdim=True)
        if mean is not None:
            along = along - scaled.mean(-1, keepdim=True)
        rows = tuple(range(grad.dim() - 1))
        weight_grad = (grad.float() * normal).sum(rows).to(weight.dtype)
        bias_grad = grad.sum(rows) if ctx.with_bias else None
        return (along * scale).to(x.dtype), weight_grad, bias_grad, None, None


class FlashAttention(Function):
    """softmax(Q K^T / sqrt(d) + mask) V over [batch, tokens, heads, dim], grouped keys: keeps Q, K, V, the output, the
    fp32 log-sum-exp of each row and, where there is one, the bias. Backward computes the scores again (Dao 2022): five
    products where forward has two. `sinks` adds a learned logit per head to each row's sum.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, sinks: Tensor | None
    ) -> Tensor:
        scores = _scores(q, k, bias, mask)
        total = torch.logsumexp(scores.float(), -1)
        if sinks is not None:
            total = torch.logaddexp(total, _per_head(sinks, total))
        probabilities = torch.exp(scores.float() - total[..., None]).to(q.dtype)
        output = _ungroup(probabilities @ _keys(v), q)
        ctx.save_for_backward(q, k, v, output, total, bias, sinks)
        ctx.mask = mask
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, total, bias, sinks = ctx.saved_tensors
        probabilities = torch.exp(_scores(q, k, bias, ctx.mask).float() - total[..., None]).to(q.dtype)
        out = _group(grad, k)
        v_grad = probabilities.transpose(-1, -2) @ out
        row = _group((grad * output).sum(-1, keepdim=True), k)
        score_grad = probabilities * (out @ _keys(v).transpose(-1, -2) - row)
        scale = q.shape[-1] ** -0.5
        q_grad = _ungroup(score_grad @ _keys(k), q) * scale
        k_grad = score_grad.transpose(-1, -2) @ _group(q, k) * scale
        bias_grad = None if bias is None else _by_head(score_grad, q).sum(0, keepdim=True)
        sink_grad = None
        if sinks is not None:
            sink = torch.exp(_per_head(sinks, total) - total) * row[..., 0]
            sink_grad = -_by_head(sink[..., None], q).sum((0, 2, 3)).to(sinks.dtype)
        return q_grad, k_grad.transpose(1, 2), v_grad.transpose(1, 2), bias_grad, None, sink_grad


def _group(q: Tensor, k: Tensor) -> Tensor:
    """[b, s, heads, d] -> [b, kv_heads, group * s, d]: the queries of a group share their keys without copying them."""
    batch, tokens, heads, dim = q.shape
    kv_heads = k.shape[2]
    return q.transpose(1, 2).reshape(batch, kv_heads, heads // kv_heads * tokens, dim)


def _ungroup(x: Tensor, q: Tensor) -> Tensor:
    return x.reshape(q.shape[0], q.shape[2], q.shape[1], x.shape[-1]).transpose(1, 2).contiguous()


def _by_head(x: Tensor, q: Tensor) -> Tensor:
    return x.reshape(q.shape[0], q.shape[2], q.shape[1], x.shape[-1])


def _keys(k: Tensor) -> Tensor:
    return k.transpose(1, 2)


def _per_head(sinks: Tensor, total: Tensor) -> Tensor:
    """[heads] broadcast over [b, kv_heads, group * s]."""
    kv_heads, rows = total.shape[1], total.shape[2]
    group = sinks.shape[0] // kv_heads
    return sinks.float().reshape(1, kv_heads, group, 1).expand(-1, -1, -1, rows // group).reshape(1, kv_heads, rows)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """Scaled, biased and masked scores as [b, kv_heads, group * queries, keys]."""
    scores = _group(q, k) @ _keys(k).transpose(-1, -2) * q.shape[-1] ** -0.5
    if bias is None and mask is None:
        return scores
    by_head = _by_head(scores, q)
    if bias is not None:
        by_head = by_head + bias
    if mask is not None:
        by_head = by_head + mask
    return by_head.reshape(scores.shape)


class FusedGate(Function):
    """act(gate) * up over one [.., 2 hidden] tensor in one kernel: keeps only that tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.name = name
        gate, up = x.chunk(2, -1)
        return activate(gate, name) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            again = x.detach().requires_grad_()
            gate, up = again.chunk(2, -1)
            (result,) = torch.autograd.grad(activate(gate, ctx.name) * up, again, grad)
        return result, None


def activate(x: Tensor, name: str) -> Tensor:
    """The activation by its catalogue name; gelu and silu keep their input, relu and relu2 the rectified output."""
    if name == "relu2":
        return torch.relu(x).square()
    return {"gelu": torch.nn.functional.gelu, "relu": torch.relu, "silu": torch.nn.functional.silu}[name](x)


class FusedRotation(Function):
    """Rotary embedding in one kernel: keeps nothing but the constant tables."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.tables = (cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.tables
        return rotate(grad, cos, -sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (x turned by a half) sin, for x of [b, s, heads, d] and tables of [s, 1, d] (Su 2021)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


class GroupedProduct(Function):
    """Rows in expert order times each expert's matrix, balanced: keeps rows, weight and the int32 offsets of experts.

    torch's own `grouped_mm` computes the same for uneven groups; its FLOPs are equal.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, offsets)
        return torch.bmm(_batched(rows, weight), weight).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, _ = ctx.saved_tensors
        out = _batched(grad, weight)
        rows_grad = torch.bmm(out, weight.transpose(1, 2)).flatten(0, 1)
        return rows_grad, torch.bmm(_batched(rows, weight).transpose(1, 2), out), None


def _batched(rows: Tensor, weight: Tensor) -> Tensor:
    return rows.reshape(weight.shape[0], -1, rows.shape[-1])


class Recurrence(Function):
    """The time loop of an LSTM, given its input half: keeps the gates after their nonlinearity, the cells and the
    states (with a projection also its inputs, which the output gate and the cell give again).

    `inputs` is [time, batch, 4 hidden]. The state before the first step is a constant, so its gradient is not made.
    Weight gradients are one product over all steps.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, projection: Tensor | None) -> Tensor:
        steps, batch, _ = inputs.shape
        hidden, state = weight.shape[0] // 4, weight.shape[1]
        h, c = inputs.new_zeros(batch, state), inputs.new_zeros(batch, hidden)
        gates, cells, states = [], [], []
        for step in range(steps):
            i, f, g, o = (inputs[step] + h @ weight.t()).chunk(4, -1)
            i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
            c = f * c + i * g
            raw = o * torch.tanh(c)
            h = raw if projection is None else raw @ projection.t()
            gates.append(torch.cat((i, f, g, o), -1))
            cells.append(c)
            states.append(h)
        output = torch.stack(states)
        ctx.save_for_backward(weight, projection, torch.stack(gates), torch.stack(cells), output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, projection, gates, cells, states = ctx.saved_tensors
        steps = gates.shape[0]
        h_grad, c_grad = torch.zeros_like(grad[0]), torch.zeros_like(cells[0])
        gate_grads, outputs, output_grads = [], [], []
        for step in reversed(range(steps)):
            i, f, g, o = gates[step].chunk(4, -1)
            before = cells[step - 1] if step else torch.zeros_like(cells[0])
            squashed = torch.tanh(cells[step])
            out = grad[step] + h_grad
            raw = out if projection is None else out @ projection
            c_grad = c_grad + raw * o * (1 - squashed.square())
            gate = torch.cat((c_grad * g * i * (1 - i), c_grad * before * f * (1 - f), c_grad * i * (1 - g.square()),
                              raw * squashed * o * (1 - o)), -1)  # fmt: skip
            c_grad = c_grad * f
            if step:
                h_grad = gate @ weight
            gate_grads.append(gate)
            outputs.append(o * squashed)
            output_grads.append(out)
        all_gates = torch.stack(gate_grads[::-1])
        previous = torch.cat((torch.zeros_like(states[:1]), states[:-1])).flatten(0, 1)
        weight_grad = all_gates.flatten(0, 1).t() @ previous
        if projection is None:
            return all_gates, weight_grad, None
        made, made_grad = torch.stack(outputs[::-1]).flatten(0, 1), torch.stack(output_grads[::-1]).flatten(0, 1)
        return all_gates, weight_grad, made_grad.t() @ made
