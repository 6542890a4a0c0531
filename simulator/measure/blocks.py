"""The reference modules with torch's own kernels inside, as a user would train them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.validate.torch_counts import blocks as reference


class Norm(reference.Norm):
    """layer_norm or rms_norm in one operator."""

    def forward(self, x: Tensor) -> Tensor:
        if self.layernorm:
            return functional.layer_norm(x, self.weight.shape, self.weight, self.bias)
        return functional.rms_norm(x, self.weight.shape, self.weight, 1e-5)


class Linear(reference.Linear):
    """One product, then its parts as views."""

    def forward(self, x: Tensor) -> Any:
        result = functional.linear(x, self.weight, self.bias)
        return result if len(self.parts) == 1 else result.split(self.parts, -1)


class Attention(reference.Attention):
    """Fused attention through scaled_dot_product_attention."""

    def _core(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        if not self.setting.kernels.fused_attention:
            return super()._core(q, k, v, bias, mask)
        result = functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=self.spec.causal,
            enable_gqa=self.spec.kv_heads < self.spec.heads,
        )  # fmt: skip
        return result.transpose(1, 2)


TRAINED = {reference.Norm: Norm, reference.Linear: Linear, reference.Attention: Attention}


def trained(model: nn.Module) -> nn.Module:
    """Give each reference module torch's own kernels (same parameters, another class), and every weight a start."""
    torch.manual_seed(0)
    for module in model.modules():
        module.__class__ = TRAINED.get(type(module), type(module))
        for name, value in module.named_parameters(recurse=False):
            with torch.no_grad():
                if isinstance(module, Norm) and name == "weight":
                    value.fill_(1.0)
                elif value.dim() == 1:
                    value.zero_()
                else:
                    value.normal_(0.0, 0.02)
    return model
