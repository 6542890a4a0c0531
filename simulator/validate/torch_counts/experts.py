"""Sparsely-gated layers as a torch module: router, dispatch, experts, combine; balanced routing.

Sizes do not depend on data: every expert gets the same number of rows, and a capacity factor pads or cuts them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.spec.model import ExpertsSpec, FeedForwardSpec
from simulator.validate.torch_counts.blocks import FeedForward, Linear, Setting, activated, parameter
from simulator.validate.torch_counts.functions import GroupedProduct


class Router(nn.Module):
    """Gate probabilities in fp32 and top-k; noisy with two matrices, hierarchical with `branching` (Shazeer 2017)."""

    def __init__(self, spec: ExpertsSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = parameter(spec.router_matrices, spec.branching or spec.count, width)
        self.second = parameter(spec.router_matrices, spec.branching, spec.count // spec.branching, width) if (
            spec.branching
        ) else None
        self.bias = parameter(spec.count) if spec.router_bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and places of the chosen experts of each token: [tokens, visited]."""
        probabilities = self._gate([functional.linear(x, matrix, self.bias) for matrix in self.weight])
        values, chosen = probabilities.topk(self.spec.top_k)
        if self.second is None:
            return values.to(x.dtype), chosen
        order = chosen.flatten().argsort()
        rows = x.index_select(0, order // self.spec.top_k)
        offsets = self._offsets(chosen)
        logits = [GroupedProduct.apply(rows, matrix.transpose(1, 2), offsets) for matrix in self.second]
        inner, places = self._gate(logits).topk(self.spec.top_k)
        weights = values.flatten().index_select(0, order)[:, None] * inner
        return weights.to(x.dtype), places

    def _offsets(self, chosen: Tensor) -> Tensor:
        return torch.zeros(self.spec.branching, dtype=torch.int32, device=chosen.device)

    def _gate(self, logits: list[Tensor]) -> Tensor:
        clean = logits[0].float()
        if len(logits) == 2:
            clean = clean + torch.randn_like(clean) * functional.softplus(logits[1].float())
        return torch.softmax(clean, -1)


class Experts(nn.Module):
    """The whole mixture between the norm's output and the residual add."""

    def __init__(self, spec: ExpertsSpec, setting: Setting) -> None:
        super().__init__()
        self.spec, self.setting = spec, setting
        width, columns = setting.model.hidden, spec.hidden * (2 if spec.gated else 1)
        self.router = Router(spec, width)
        self.up, self.down = parameter(spec.count, width, columns), parameter(spec.count, spec.hidden, width)
        self.up_bias = parameter(spec.count, columns) if spec.bias else None
        self.down_bias = parameter(spec.count, width) if spec.bias else None
        shared = FeedForwardSpec(
            hidden=spec.shared_hidden, gated=spec.gated, bias=spec.bias, activation=spec.activation
        )
        self.shared = FeedForward(shared, setting) if spec.shared_hidden else None
        self.shared_gate = Linear(width, 1) if spec.shared_gate else None
        self.extra = FeedForward(spec.extra_feed_forward, setting) if spec.extra_feed_forward else None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        result = self._routed(flat).view_as(x)
        if self.shared is not None:
            shared = self.setting.recomputed("shared_experts", self.shared, x)
            if self.shared_gate is not None:
                shared = torch.sigmoid(self.shared_gate(x)) * shared
            result = result + shared
        return result if self.extra is None else result + self.extra(x)

    def _routed(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x)
        order = self._slots(chosen)
        token = order // self.spec.visited
        offsets = torch.zeros(self.spec.count, dtype=torch.int32, device=x.device)
        expert = torch.arange(self.spec.count, device=x.device).repeat_interleave(order.shape[0] // self.spec.count)
        rows = self._product(x.index_select(0, token), self.up, self.up_bias, offsets, expert)
        rows, release = self.setting.discarded("moe_act", self._activated, rows)
        rows = release(self._product(rows, self.down, self.down_bias, offsets, expert))
        weighted = rows * weights.flatten().index_select(0, order)[:, None]
        return torch.zeros_like(x).scatter_add(0, token[:, None].expand_as(weighted), weighted)

    def _slots(self, chosen: Tensor) -> Tensor:
        """Which (token, choice) fills each row, in expert order; a capacity factor cuts or pads the list."""
        order = chosen.flatten().argsort()
        if not self.spec.capacity_factor:
            return order
        slots = int(order.shape[0] * self.spec.capacity_factor)
        return functional.pad(order, (0, slots - order.shape[0])) if slots > order.shape[0] else order[:slots].clone()

    def _activated(self, rows: Tensor) -> Tensor:
        return activated(rows, self.spec, self.setting.kernels)

    def _product(self, rows: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, expert: Tensor) -> Tensor:
        """Padded buffers are one batched product; dropless rows a grouped one, with biases looked up row by row."""
        if self.spec.capacity_factor:
            made = torch.bmm(rows.view(self.spec.count, -1, rows.shape[-1]), weight)
            return (made if bias is None else made + bias[:, None]).flatten(0, 1)
        made = GroupedProduct.apply(rows, weight, offsets)
        return made if bias is None else made + bias.index_select(0, expert)
