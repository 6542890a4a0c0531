"""Norms, attention, feed-forwards and recurrent layers as plain torch modules, built from our own specs.

These are the executable definition of what `simulator.arch` counts: every matrix product, every tensor that autograd
keeps. `Setting` carries the kernels that run; a fused kernel is an autograd function of `functions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from simulator.arch.shard import Kernels
from simulator.parallel.recompute import Policy
from simulator.spec.model import AttentionSpec, FeedForwardSpec, LstmSpec, ModelSpec
from simulator.validate.torch_counts import functions
from simulator.validate.torch_counts.discard import Discarded


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a reference module runs: kernels, and the modules that it computes again in backward."""

    model: ModelSpec
    kernels: Kernels
    policy: Policy

    def recomputed(self, module: str, run: Callable[..., Any], *inputs: Any) -> Any:
        """Run a recomputable module, checkpointed when the policy names it."""
        if module in self.policy.modules:
            return checkpoint(run, *inputs, use_reentrant=False)
        return run(*inputs)

    def discarded(self, module: str, run: Callable[..., Any], *inputs: Any) -> tuple[Any, Callable[[Tensor], Tensor]]:
        """Run a module whose output is made again in backward, when the policy names it; give its output to a reader,
        then that reader's output to the function returned.
        """
        if module not in self.policy.modules:
            return run(*inputs), lambda read: read
        kept = Discarded(run, inputs)
        return kept.run(), kept.release


def parameter(*sizes: int) -> nn.Parameter:
    """An uninitialised parameter: reference modules are counted, not trained."""
    return nn.Parameter(torch.empty(sizes))


class Norm(nn.Module):
    """LayerNorm or RMSNorm of the model's kind; unfused it is a chain of kernels in fp32."""

    def __init__(self, setting: Setting, width: int, *, layernorm: bool, bias: bool) -> None:
        super().__init__()
        self.setting, self.layernorm = setting, layernorm
        self.weight = parameter(width)
        self.bias = parameter(width) if layernorm and bias else None

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.setting.kernels
        if kernels.fused_norm or kernels.compiled:
            return functions.FusedNorm.apply(x, self.weight, self.bias, self.layernorm, 1e-5)
        wide = x.float()
        if self.layernorm:
            wide = wide - wide.mean(-1, keepdim=True)
        normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
        result = self.weight * normal.to(x.dtype)
        return result if self.bias is None else result + self.bias


def full_norm(setting: Setting) -> Norm:
    """A norm of full width, as the model has them."""
    model = setting.model
    return Norm(setting, model.hidden, layernorm=model.norm == "layernorm", bias=model.norm_bias)


def dropped(x: Tensor, kernels: Kernels) -> Tensor:
    """Dropout with a mask of one byte per element (what CUDA's fused dropout keeps), or nothing."""
    return torch.native_dropout(x, 0.1, True)[0] if kernels.dropout else x


class Linear(nn.Module):
    """[inputs] -> [outputs]; `parts` are products of their own on slices of one matrix, each with its own output."""

    def __init__(self, inputs: int, *parts: int, bias: bool = False) -> None:
        super().__init__()
        self.parts = parts
        self.weight = parameter(sum(parts), inputs)
        self.bias = parameter(sum(parts)) if bias else None

    def forward(self, x: Tensor) -> Any:
        if len(self.parts) == 1:
            return functional.linear(x, self.weight, self.bias)
        biases = self.bias.split(self.parts) if self.bias is not None else [None] * len(self.parts)
        return [functional.linear(x, w, b) for w, b in zip(self.weight.split(self.parts), biases, strict=True)]


class Attention(nn.Module):
    """Multi-head, grouped-query, latent, windowed or cross attention, from the norm's output to the output layer."""

    def __init__(self, spec: AttentionSpec, setting: Setting, *, cross: bool = False) -> None:
        super().__init__()
        self.spec, self.setting, self.cross = spec, setting, cross
        width = setting.model.hidden
        query, key, value = (
            spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.kv_heads * spec.value_head_dim
        )  # fmt: skip
        if spec.latent:
            self._latent(width)
        elif cross:
            self.q = Linear(width, query, bias=spec.qkv_bias)
            self.kv = Linear(width, key, value, bias=spec.qkv_bias)
        else:
            self.qkv = Linear(width, query, key, value, bias=spec.qkv_bias)
        if spec.qk_norm:
            sizes = (spec.head_dim, spec.head_dim) if spec.qk_norm_shared else (query, key)
            self.q_norm, self.k_norm = (Norm(setting, size, layernorm=False, bias=False) for size in sizes)
        self.relative_bias = parameter(spec.relative_bias_buckets, spec.heads) if spec.relative_bias_buckets else None
        self.sinks = parameter(spec.heads) if spec.sinks else None
        self.out = Linear(spec.heads * spec.value_head_dim, width, bias=spec.out_bias)

    def _latent(self, width: int) -> None:
        spec, setting = self.spec, self.setting
        nope = spec.head_dim - spec.rope_head_dim
        if spec.q_lora_rank:
            self.q_down = Linear(width, spec.q_lora_rank)
            self.q_latent_norm = Norm(setting, spec.q_lora_rank, layernorm=False, bias=False)
        self.q = Linear(spec.q_lora_rank or width, spec.heads * spec.head_dim)
        self.kv_down = Linear(width, spec.kv_lora_rank, spec.rope_head_dim)
        self.kv_latent_norm = Norm(setting, spec.kv_lora_rank, layernorm=False, bias=False)
        self.kv_up = Linear(spec.kv_lora_rank, spec.heads * nope, spec.heads * spec.value_head_dim)

    def forward(self, x: Tensor, memory: Tensor | None, bias: Tensor | None, tables: Any) -> Tensor:
        return self.setting.recomputed("attention", self._run, x, memory, bias, tables)

    def _run(self, x: Tensor, memory: Tensor | None, bias: Tensor | None, tables: Any) -> Tensor:
        if self.spec.latent:
            heads, release = self._latent_heads(x, tables)
            return self.out(release(self._context(heads, bias, tables)).flatten(2))
        return self.out(self._context(self._heads(x, memory, tables), bias, tables).flatten(2))

    def _context(self, heads: tuple[Tensor, Tensor, Tensor], bias: Tensor | None, tables: Any) -> Any:
        mask = tables.mask(self.spec, heads[0].shape[1], heads[1].shape[1])
        return self.setting.recomputed("core_attn", self._core, *heads, bias, mask)

    def _heads(self, x: Tensor, memory: Tensor | None, tables: Any) -> tuple[Tensor, Tensor, Tensor]:
        if self.cross:
            q, (k, v) = self.q(x), self.kv(memory)
        else:
            q, k, v = self.qkv(x)
        spec = self.spec
        if spec.qk_norm and not spec.qk_norm_shared:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.unflatten(-1, (spec.heads, -1)), k.unflatten(-1, (spec.kv_heads, -1))
        if spec.qk_norm and spec.qk_norm_shared:
            q, k = self.q_norm(q), self.k_norm(k)
        if spec.rope_head_dim:
            q, k = self._turn(q, tables), self._turn(k, tables)
        return q, k, v.unflatten(-1, (spec.kv_heads, -1))

    def _latent_heads(self, x: Tensor, tables: Any) -> Any:
        spec = self.spec
        query = self.q_latent_norm(self.q_down(x)) if spec.q_lora_rank else x
        latent, shared = self.kv_down(x)
        turned = self._turn(shared.unflatten(-1, (1, -1)), tables)
        return self.setting.discarded("mla_up_proj", self._up, query, self.kv_latent_norm(latent), turned, tables)

    def _up(self, query: Tensor, latent: Tensor, shared: Tensor, tables: Any) -> tuple[Tensor, Tensor, Tensor]:
        spec = self.spec
        q = self.q(query).unflatten(-1, (spec.heads, -1))
        still, turning = q.split((spec.head_dim - spec.rope_head_dim, spec.rope_head_dim), -1)
        q = torch.cat((still, self._turn(turning, tables)), -1)
        k, v = self.kv_up(latent)
        k = torch.cat((k.unflatten(-1, (spec.heads, -1)), shared.expand(-1, -1, spec.heads, -1)), -1)
        return q, k, v.unflatten(-1, (spec.heads, -1))

    def _turn(self, x: Tensor, tables: Any) -> Tensor:
        cos, sin = tables.rotary(self.spec.rope_head_dim, x.shape[1])
        rest = x.shape[-1] - self.spec.rope_head_dim
        turning = x[..., : self.spec.rope_head_dim] if rest else x
        fused = self.setting.kernels.fused_rope or self.setting.kernels.compiled
        turned = functions.FusedRotation.apply(turning, cos, sin) if fused else functions.rotate(turning, cos, sin)
        return torch.cat((turned, x[..., -rest:]), -1) if rest else turned

    def _core(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        kernels = self.setting.kernels
        if kernels.fused_attention:
            return functions.FlashAttention.apply(q, k, v, bias, mask, self.sinks)
        scores = functions._scores(q, k, bias, mask)
        if self.sinks is not None:
            logit = functions._per_head(self.sinks, scores[..., 0]).to(scores.dtype)
            scores = torch.cat((scores, logit[..., None].expand(*scores.shape[:-1], 1)), -1)
        wide = not (kernels.fused_softmax or kernels.compiled)
        probabilities = torch.softmax(scores, -1, dtype=torch.float32 if wide else None).to(q.dtype)
        if self.sinks is not None:
            probabilities = probabilities[..., :-1]
        return functions._ungroup(dropped(probabilities, kernels) @ functions._keys(v), q)


class FeedForward(nn.Module):
    """Up (and gate), activation, down."""

    def __init__(self, spec: FeedForwardSpec, setting: Setting) -> None:
        super().__init__()
        self.spec, self.setting = spec, setting
        self.up = Linear(setting.model.hidden, spec.hidden * (2 if spec.gated else 1), bias=spec.bias)
        self.down = Linear(spec.hidden, setting.model.hidden, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(activated(self.up(x), self.spec, self.setting.kernels))


def activated(x: Tensor, spec: Any, kernels: Kernels) -> Tensor:
    """The activation of a feed-forward or of experts, gated or not."""
    if not spec.gated:
        return functions.activate(x, spec.activation)
    if kernels.fused_bias_activation or kernels.compiled:
        return functions.FusedGate.apply(x, spec.activation)
    gate, up = x.chunk(2, -1)
    return functions.activate(gate, spec.activation) * up


class Lstm(nn.Module):
    """Four gates over [input, state]; the input half is one product over all tokens. No biases (Shazeer 2017)."""

    def __init__(self, spec: LstmSpec, setting: Setting) -> None:
        super().__init__()
        state = spec.projection or spec.hidden
        self.inputs = parameter(4 * spec.hidden, setting.model.hidden)
        self.states = parameter(4 * spec.hidden, state)
        self.projection = parameter(state, spec.hidden) if spec.projection else None

    def forward(self, x: Tensor) -> Tensor:
        gates = functional.linear(x.transpose(0, 1), self.inputs)
        return functions.Recurrence.apply(gates, self.states, self.projection).transpose(0, 1)
