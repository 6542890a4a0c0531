"""Small models, devices and clusters written out by hand, so that tests do not lean on the catalogue."""

from __future__ import annotations

from simulator.spec.hardware import Cluster, Device, Tier
from simulator.spec.kernels import kernel_model_for
from simulator.spec.model import (
    AttentionSpec,
    EmbeddingSpec,
    ExpertsSpec,
    FeedForwardSpec,
    HeadSpec,
    LayerSpec,
    ModelSpec,
    StackSpec,
)


def gpt(
    hidden: int, layers: int, heads: int, *, vocab: int = 51200, seq_len: int = 2048, tied: bool = True
) -> ModelSpec:
    """A GPT of the GPT-3 shape: learned positions, biases, 4 h feed-forward."""
    head_dim = hidden // heads
    attention = AttentionSpec(
        heads=heads, kv_heads=heads, head_dim=head_dim, value_head_dim=head_dim, qkv_bias=True, out_bias=True
    )
    layer = LayerSpec(attention=attention, feed_forward=FeedForwardSpec(hidden=4 * hidden, bias=True))
    return ModelSpec(
        name=f"gpt-{hidden}x{layers}", title="", family="test", hidden=hidden, seq_len=seq_len,
        stacks=(StackSpec(role="decoder", runs=((layer, layers),)),),
        embedding=EmbeddingSpec(vocab=vocab, width=hidden, learned_positions=seq_len), head=HeadSpec(tied=tied),
    )  # fmt: skip


def mixture(
    hidden: int = 1024, layers: int = 8, heads: int = 16, *, experts: int = 8, top_k: int = 2, expert_hidden: int = 2048
) -> ModelSpec:
    """A Mixtral-like mixture: rotary attention with grouped queries, gated experts in every layer."""
    head_dim = hidden // heads
    attention = AttentionSpec(
        heads=heads, kv_heads=heads // 2, head_dim=head_dim, value_head_dim=head_dim, rope_head_dim=head_dim
    )
    spec = ExpertsSpec(count=experts, top_k=top_k, hidden=expert_hidden, gated=True)
    layer = LayerSpec(attention=attention, experts=spec)
    return ModelSpec(
        name="mixture", title="", family="test", hidden=hidden, seq_len=2048, norm="rmsnorm", norm_bias=False,
        stacks=(StackSpec(role="decoder", runs=((layer, layers),)),),
        embedding=EmbeddingSpec(vocab=32000, width=hidden), head=HeadSpec(tied=False),
    )  # fmt: skip


def a100() -> Device:
    """An A100-SXM-80GB by its datasheet."""
    return Device(
        name="a100-test", title="A100", vendor="NVIDIA", generation="ampere",
        peak_flops_per_s={"fp32": 19.5e12, "tf32": 156e12, "fp16": 312e12, "bf16": 312e12},
        vector_flops_per_s=19.5e12, memory_bytes=80 * 2.0**30, memory_bandwidth_bytes_per_s=2.039e12,
        cache_bytes=40e6, units=108, kernels=kernel_model_for("ampere", "a100-test", {}),
    )  # fmt: skip


def dgx(nodes: int, device: Device | None = None) -> Cluster:
    """Nodes of eight devices on NVSwitch, a full-bisection fat tree of 200 Gb/s per device between them."""
    inside = Tier(name="nvlink", kind="nvswitch", topology="switch", size=8, bandwidth_bytes_per_s=300e9,
                  latency_s=1e-6, channels=12)  # fmt: skip
    between = Tier(name="fabric", kind="infiniband", topology="fat-tree", size=8 * nodes, bandwidth_bytes_per_s=25e9,
                   latency_s=5e-6, rail_optimised=True)  # fmt: skip
    return Cluster(name="dgx-test", title="", device=device or a100(), devices_per_node=8, nodes=nodes,
                   tiers=(inside, between) if nodes > 1 else (inside,))  # fmt: skip
