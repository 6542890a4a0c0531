"""How one rank sees the model: local sizes under the degrees, and which kernels the software runs.

`Shard` holds the numbers (they broadcast), `Kernels` the structural options (constant within a call).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.arch.operations import DTYPE_BYTES, Number
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run

LOW_PRECISIONS = ("fp8", "mxfp8", "nvfp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The software's structural choices that decide which kernels run and what they save."""

    fused_attention: bool
    attention_kernel: str
    """Generation of the fused attention kernel (see Framework)."""
    fused_softmax: bool
    fused_bias_activation: bool
    fused_bias_dropout: bool
    fused_norm: bool
    fused_rope: bool
    fused_cross_entropy: bool
    parallel_cross_entropy: bool
    compiled: bool
    dropout: bool
    activation_dtype: str
    """Dtype of activations and of their gradients."""
    gemm_dtype: str
    """Dtype that the linear layers' GEMMs multiply in."""
    logits_dtype: str
    overlap_tp_grad: bool
    """The tensor-parallel collective of an input gradient runs beside the weight-gradient GEMM."""
    overlap_tp: bool
    """Forward tensor-parallel collectives are pipelined with their GEMM (user buffers, async-TP)."""
    overlap_moe: bool
    expert_dispatch: str = "all-to-all"
    gates_in_activation: bool = False
    """Routed rows are weighted by their gate inside the experts' activation."""
    experts_pointwise: str = "kernels"
    """What runs between the products of experts (see Framework)."""
    pads_experts: bool = False
    """Dropless rows are copied into padded buffers before narrow products, and back."""
    activation_input_dtype: str = ""
    """Dtype in which the input of a feed-forward's activation is kept for backward; empty: as it is."""
    attention_output_dtype: str = ""
    """Dtype in which the attention core's output is kept for backward; empty: as it is."""
    narrow_attention: bool = False
    softmax_dtype: str = "fp32"
    copies_heads: bool = False
    separate_qkv: bool = False
    fuses_reductions: bool = True
    logits_fraction: float = 1.0
    """Share of positions that reach the vocabulary projection (masked-LM heads that gather them first)."""

    @property
    def element_bytes(self) -> float:
        """Bytes per activation element [B]."""
        return DTYPE_BYTES[self.activation_dtype]

    def kept_bytes(self, dtype: str) -> float:
        """Bytes per element of a tensor that is kept in `dtype`, or as it is when that is empty [B]."""
        return DTYPE_BYTES[dtype] if dtype else self.element_bytes

    @property
    def attention_dtype(self) -> str:
        """Dtype that the fused attention core multiplies in."""
        narrow = self.narrow_attention and self.gemm_dtype in LOW_PRECISIONS
        return self.gemm_dtype if narrow else self.activation_dtype

    @property
    def softmax_bytes(self) -> float:
        """Bytes per probability that an unfused softmax writes [B]."""
        whole = self.fused_softmax or (self.compiled and self.fuses_reductions)
        return self.element_bytes if whole or not self.softmax_dtype else DTYPE_BYTES[self.softmax_dtype]

    @property
    def experts_in_epilogue(self) -> bool:
        """The pointwise work of experts rides in their grouped products."""
        return self.experts_pointwise == "epilogue" and self.gemm_dtype in LOW_PRECISIONS

    @property
    def gemm_input_bytes(self) -> float:
        """Bytes per element of a linear layer's input as it is saved for backward [B]."""
        return DTYPE_BYTES[self.gemm_dtype] if self.gemm_dtype in LOW_PRECISIONS else self.element_bytes


def kernels_for(model: ModelSpec, run: Run, framework: Framework, *, overlap_tp: bool, overlap_moe: bool) -> Kernels:
    """The kernels that `framework` runs for this model at this run's precision."""
    dropout = next(p for p in (run.dropout, framework.dropout, model.dropout) if p is not None)
    fused = (run.attention or framework.attention) == "fused"
    activation = "bf16" if run.precision in LOW_PRECISIONS else run.precision
    if framework.fused_attention_16_bit and not run.attention and DTYPE_BYTES[activation] != 2:
        fused = False
    return Kernels(
        fused_attention=fused,
        attention_kernel=framework.attention_kernel,
        fused_softmax=framework.fused_softmax,
        fused_bias_activation=framework.fused_bias_activation,
        fused_bias_dropout=framework.fused_bias_dropout,
        fused_norm=framework.fused_norm,
        fused_rope=framework.fused_rope,
        fused_cross_entropy=framework.fused_cross_entropy,
        parallel_cross_entropy=framework.parallel_cross_entropy,
        compiled=framework.compiled,
        dropout=dropout > 0,
        activation_dtype=activation,
        gemm_dtype=run.precision,
        logits_dtype=framework.logits_dtype,
        overlap_tp_grad=framework.overlap_tp_grad,
        overlap_tp=overlap_tp,
        overlap_moe=overlap_moe,
        expert_dispatch=framework.expert_dispatch,
        gates_in_activation=framework.gates_in_activation,
        experts_pointwise=framework.experts_pointwise,
        pads_experts=framework.pads_experts,
        activation_input_dtype=framework.activation_input_dtype,
        attention_output_dtype=framework.attention_output_dtype,
        narrow_attention=framework.narrow_attention,
        softmax_dtype=framework.softmax_dtype,
        copies_heads=framework.copies_heads,
        separate_qkv=framework.separate_qkv,
        fuses_reductions=framework.fuses_reductions,
        logits_fraction=framework.logits_fraction,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Local sizes of one rank. Degrees may be arrays; `sequence_parallel` and `context_kind` are constants."""

    micro_batch: Number
    seq_len: Number
    """Tokens per sequence in the stack at hand, before context parallelism."""
    memory_seq_len: Number = 0
    """Encoder tokens per sequence that a decoder's cross-attention reads."""
    tp: Number = 1
    cp: Number = 1
    ep: Number = 1
    etp: Number = 1
    sequence_parallel: bool = False
    context_kind: str = "ring"
    vocab_multiple: int = 1
    capacity_factor: float | None = None
    capacity_per_choice: bool = True
    routing_group: int = 0
    """Tokens that are routed together, where one-hot products dispatch them; 0 is the model's."""
    imbalance: float = 1.0

    @property
    def tokens(self) -> Number:
        """Tokens per rank between the tensor-parallel borders: b s / cp."""
        return self.micro_batch * self.seq_len / self.cp

    @property
    def split_tokens(self) -> Number:
        """Tokens per rank in norm and dropout regions: also divided by tp under sequence parallelism."""
        return self.tokens / self.tp if self.sequence_parallel else self.tokens

    @property
    def expert_sources(self) -> Number:
        """Ranks of an expert-tensor group that hold different rows: all; without sequence parallelism one per tp group.

        >>> float(Shard(micro_batch=1, seq_len=4, tp=2, etp=8).expert_sources)
        4.0
        """
        return self.etp if self.sequence_parallel else np.maximum(self.etp / self.tp, 1.0)

    @property
    def memory_tokens(self) -> Number:
        return self.micro_batch * self.memory_seq_len / self.cp


def padded_vocab(vocab: int, multiple: int, tp: Number) -> Number:
    """Vocabulary rounded up to a multiple of `multiple` * tp (Megatron-LM `_vocab_size_with_padding`).

    >>> padded_vocab(50257, 128, 8)
    51200
    """
    unit = multiple * tp
    return -(-vocab // unit) * unit


def is_split(degree: Number) -> bool:
    """False only for the scalar 1: an array keeps its collectives, which cost nothing where the degree is 1."""
    return isinstance(degree, np.ndarray) or degree != 1
