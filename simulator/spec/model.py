"""What a model is: layers made of blocks, as frozen values. No FLOPs here, only dimensions.

A model has one stack (encoder or decoder) or two (encoder then decoder). A stack is runs of equal layers.
A layer is an attention block, possibly a cross-attention block, and one of feed-forward, experts or an LSTM.
Names of dims follow Hugging Face and Megatron.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Multi-head, grouped-query, multi-query (kv_heads) or multi-head latent attention (kv_lora_rank > 0).

    For latent attention `head_dim` is the non-rotary query/key part plus `rope_head_dim` (what a score uses).
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_head_dim: int
    causal: bool = True
    window: int = 0
    """Sliding window in tokens; 0 is none."""
    chunk: int = 0
    """Local attention chunk in tokens (Llama 4); 0 is none."""
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    qk_norm_shared: bool = True
    """True: one scale per head_dim shared by all heads (Qwen3). False: one per head and dim."""
    sinks: bool = False
    """One learned logit per head (gpt-oss)."""
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    rope_head_dim: int = 0
    """Dims of a query/key head that rotary embedding turns: head_dim in most rotary models, the shared rotary part
    under latent attention, 0 where positions enter otherwise."""
    relative_bias_buckets: int = 0
    """Relative-position bias table owned by this layer, buckets x heads (T5 owns one per stack, in layer 0)."""
    relative_bias: bool = False
    """A bias is added to the scores (so unfused attention reads it), whoever owns the table."""

    @property
    def latent(self) -> bool:
        return self.kv_lora_rank > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForwardSpec:
    """Two matrices, or three when gated."""

    hidden: int
    gated: bool = False
    bias: bool = False
    activation: str = "gelu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSpec:
    """A sparsely-gated layer: a router and `count` feed-forwards of which each token visits `top_k`."""

    count: int
    top_k: int
    """Experts per token; of a hierarchical mixture, groups per token and experts per group (so top_k^2 experts)."""
    hidden: int
    gated: bool = False
    bias: bool = False
    activation: str = "gelu"
    clamped: bool = False
    """What enters the activation is clamped (gpt-oss: swiglu_limit)."""
    router_bias: bool = False
    router_matrices: int = 1
    """2 for noisy top-k gating (Shazeer 2017: W_g and W_noise)."""
    branching: int = 0
    """First-level branching of a hierarchical mixture (Shazeer 2017 appendix B); 0 is flat."""
    shared_hidden: int = 0
    """Hidden size of the always-on shared expert(s), summed."""
    shared_gate: bool = False
    """A one-column gate on the shared expert (Qwen2-MoE, Llama 4 has none)."""
    capacity_factor: float = 0.0
    """Buffers of capacity_factor * top_k * tokens / count per expert, padded; 0 is dropless."""
    routing_group: int = 0
    """Tokens that are routed together and share those buffers; 0 is all that a rank holds."""
    extra_feed_forward: FeedForwardSpec | None = None
    """A dense feed-forward beside or after the experts (ST-MoE)."""

    @property
    def visited(self) -> int:
        """Experts that one token visits: top_k, or top_k at each of two levels (Shazeer 2017 appendix B)."""
        return self.top_k**2 if self.branching else self.top_k


@dataclass(frozen=True, slots=True, kw_only=True)
class LstmSpec:
    """One LSTM block: 4 gates over [input, state]; `projection` > 0 projects the output (Shazeer 2017)."""

    hidden: int
    projection: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer: which blocks it has, in order, and how its norms stand.

    `norms` is the number of full-width norms in the layer (2; 1 for PaLM's parallel block; 3 with
    cross-attention; 4 in Gemma 2 and 3; 0 for the 2017 LSTM layers).
    """

    attention: AttentionSpec | None = None
    cross_attention: AttentionSpec | None = None
    feed_forward: FeedForwardSpec | None = None
    experts: ExpertsSpec | None = None
    lstm: LstmSpec | None = None
    norms: int = 2
    parallel: bool = False
    """Attention and feed-forward read the same norm (PaLM)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSpec:
    """Layers in order, as runs of equal layers."""

    role: Literal["encoder", "decoder"]
    runs: tuple[tuple[LayerSpec, int], ...]
    final_norm: bool = True

    @property
    def layers(self) -> int:
        return sum(count for _, count in self.runs)

    def layer(self, index: int) -> LayerSpec:
        """The layer at `index`, counted from 0."""
        for spec, count in self.runs:
            if index < count:
                return spec
            index -= count
        raise IndexError(index)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSpec:
    """Token table, and what is added to it."""

    vocab: int
    width: int
    """Usually the model's hidden size; smaller with a projection (OPT-350M)."""
    learned_positions: int = 0
    token_types: int = 0
    norm: bool = False
    """A norm after the embedding (BERT, BLOOM)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """From the last hidden state to the loss."""

    tied: bool = True
    bias: bool = False
    transform: bool = False
    """BERT's masked-LM head: dense + activation + norm before the vocabulary projection."""
    pooler: bool = False
    """BERT's dense layer over the first token, with the next-sentence classifier."""
    pooler_classes: int = 0
    mtp_layers: int = 0
    """Multi-token-prediction depth (DeepSeek-V3): each adds one layer, a 2h x h projection and a logits pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What the publication prints, to be compared with our count."""

    parameters: int = 0
    parameters_exact: bool = False
    """True when the publication gives the count to the unit, or to digits that our count must round to."""
    tolerance: float = 0.005
    """Relative rounding of the printed number (half a unit of its last digit)."""
    active_parameters: int = 0
    active_tolerance: float = 0.005
    """As `tolerance`, of the activated count."""
    active_excludes: tuple[str, ...] = ()
    """What the published active count leaves out: "embedding", "head"."""
    excludes: tuple[str, ...] = ()
    """What the published total leaves out (Shazeer 2017: "embedding", "head")."""
    source: str = ""
    explanation: str = ""
    """Why our count differs, where it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One architecture. `hidden` is d_model; `seq_len` the training sequence length of the publication."""

    name: str
    title: str
    family: str
    aliases: tuple[str, ...] = ()
    """Other names that people and tables of runs use."""
    hidden: int
    seq_len: int
    stacks: tuple[StackSpec, ...]
    embedding: EmbeddingSpec
    head: HeadSpec
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_bias: bool = True
    """LayerNorm has a bias vector (T5's and RMS norms have none)."""
    dropout: float = 0.0
    """Dropout probability of the published recipe."""
    target_seq_len: int = 0
    """Decoder tokens per sequence of an encoder-decoder."""
    published: Published = field(default_factory=Published)
    training: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Published training facts as text (optimizer, batch, hardware), each cited; never used as a constant."""
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def layers(self) -> int:
        return sum(stack.layers for stack in self.stacks)

    @property
    def architecture(self) -> str:
        return "-".join(stack.role for stack in self.stacks)

    @property
    def mixture(self) -> bool:
        """True when any layer has experts."""
        return any(spec.experts is not None for stack in self.stacks for spec, _ in stack.runs)
