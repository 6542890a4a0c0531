"""What is run: batch, sequence, precision, optimizer; and what the software does: a framework profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4")
OPTIMIZERS = ("adam", "adamw", "adam-bf16", "adafactor", "sgd", "lamb")
CONVENTIONS = ("megatron", "palm", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """What a training framework's software does, from its documentation or source. No number fitted to a step."""

    name: str
    title: str = ""
    attention: str = "fused"
    """Default attention core: fused (flash) or unfused (batched GEMM, softmax, GEMM)."""
    attention_kernel: str = "library"
    """Fused attention kernel: "library" (the device's best, which the kernel measurements timed), "flash2" or
    "flash1" (FlashAttention 2 and 1, slower on newer devices)."""
    fused_attention_16_bit: bool = False
    """The fused core multiplies 16-bit operands only: runs in fp32 and TF32 take the unfused one."""
    fused_softmax: bool = True
    """Unfused attention: scale, mask and softmax in one kernel."""
    softmax_dtype: str = "fp32"
    """Dtype of an unfused core's softmax where it is not one kernel: "fp32" (autocast and mixed precision widen it and
    cast back) or empty, the activations'."""
    copies_heads: bool = False
    """An unfused core's products read copies of Q, K and V by head, and its output is copied back: a batch of strided
    products has one stride between its matrices, [batch, sequence, heads, width] has two."""
    separate_qkv: bool = False
    """Q, K and V are three products in place of one."""
    fused_bias_activation: bool = True
    fused_bias_dropout: bool = True
    """Bias, dropout and residual add in one kernel."""
    fused_norm: bool = True
    fused_rope: bool = True
    fused_cross_entropy: bool = True
    parallel_cross_entropy: bool = True
    """The loss is computed on vocabulary shards; otherwise every tp rank gathers all logits and computes it whole."""
    fused_optimizer: bool = True
    fused_gradient_accumulation: bool = True
    """The weight-gradient GEMM adds into the main gradient; otherwise a kernel per tensor does."""
    dropout: float | None = None
    """Dropout probability used by default; None is the model's own."""
    logits_dtype: str = "fp32"
    """Dtype in which the loss is computed."""
    gradient_dtype: str = "fp32"
    """Dtype in which gradients are accumulated over micro-batches (main gradients)."""
    gradient_reduce_dtype: str = "fp32"
    """Dtype on the wire of the data-parallel reduction."""
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    zero_whole_tensors: bool = False
    """ZeRO-1 and 2 give each rank whole tensors to own: gradients are reduced to their owners and parameters broadcast
    from them, one collective per owner, in place of one reduce-scatter and one all-gather of even shares."""
    defers_gradient_scatter: bool = False
    """ZeRO-2: gradients are added up whole over micro-batches and scattered once per step, as under ZeRO-1."""
    sharded_copies: str = "none"
    """What reducing and sharding copies besides what it sends: "gradients" (FSDP1: a layer's gradients are joined into
    one flat tensor, which is then divided), "both" (FSDP2: gathered parameters are copied out into tensors, gradients
    into the buffer that is scattered), "flattened" (an all-reduce flattens gradients, divides and copies them back) or
    "none" (parameters and gradients are views of the buffers)."""
    overlap_tp_grad: bool = True
    """The tensor-parallel reduction of an input gradient runs beside the weight-gradient GEMM."""
    overlap_tp: bool = False
    overlap_moe: bool = False
    expert_dispatch: str = "all-to-all"
    """How routed tokens reach their experts: copied into expert order and sent "all-to-all" (one copy per visited
    expert) or "deduplicated" (one per node); or by an "einsum" with one-hot tensors, then all-to-all."""
    capacity_per_choice: bool = True
    """Buffers hold capacity factor x top_k x tokens / experts (Lepikhin 2020); else no top_k (Fedus 2022 eq. 3)."""
    gates_in_activation: bool = False
    """Routed tokens are weighted by their gate inside the experts' activation, so that the experts' outputs need not be
    kept to differentiate the gate."""
    experts_pointwise: str = "kernels"
    """What runs between the products of experts: "kernels" (one for the activation, with the casts around it),
    "tensor-ops" (besides, clamps and the outputs' biases, weighted by the gate in fp32, as tensor operations expert by
    expert) or "epilogue" (activation, clamps, biases and casts inside the grouped products where these are in 8 or
    fewer bits; else as "tensor-ops")."""
    pads_experts: bool = False
    """Before narrow products dropless rows are copied into buffers padded expert by expert, and back after them."""
    activation_input_dtype: str = ""
    """Dtype in which the input of a feed-forward's activation is kept for backward. Empty: as it is."""
    attention_output_dtype: str = ""
    """Dtype in which the attention core's output is kept for backward. Empty: as it is."""
    narrow_attention: bool = False
    """The attention core multiplies in the linear layers' dtype where that is narrower than 16 bits."""
    overlap_p2p: bool = True
    scatter_gather_p2p: bool = True
    """Without sequence parallelism, a pipeline send carries 1/tp of the activation and the receiver gathers it
    (Narayanan 2021 sec. 4.1)."""
    logits_fraction: float = 1.0
    """Share of positions projected onto the vocabulary (BERT scripts that gather masked positions first)."""
    vocab_multiple: int = 128
    """The vocabulary is padded to a multiple of this times tp."""
    bucket_bytes: float = 160e6
    """Gradient bucket of the overlapped reduction."""
    launch_s: float = 5e-6
    """Host time to launch one kernel (eager dispatch), s."""
    cuda_graphs: bool = False
    """Launches are replayed from a graph: no host time per kernel, dropless experts' apart."""
    graphs_experts: bool = False
    """The graph holds dropless experts too: their buffers have a size that is fixed ahead."""
    compiled: bool = False
    """A fusing compiler (XLA, torch.compile) merges neighbouring pointwise kernels."""
    fuses_reductions: bool = True
    """The compiler keeps what follows the reduction of a row (softmax, norm) in its kernel; otherwise each reduction
    ends a kernel, and the next reads the row again."""
    context_bytes: float = 1.0e9
    """Device memory of the context, NCCL and libraries outside the framework's allocator."""
    fragmentation_fraction: float = 0.0
    """Share of the allocator's reserved memory that no tensor uses."""
    keeps_fresh_gradients: bool = False
    """The 16-bit gradients of a backward stay allocated beside the fp32 ones that they are added into."""
    keeps_stage_outputs: bool = False
    """A pipeline stage's output stays until its backward, beside what its layers save, instead of being let go once
    it is sent."""
    keeps_split_outputs: bool = False
    """Where a send carries 1/tp of the activation, only that share of the stage's output stays."""
    flat_gradients: bool = False
    """The optimizer step copies its share of the gradients into one flat buffer before it widens them to fp32."""
    stored_parameter_dtype: str = ""
    """Dtype in which parameters rest between steps. Empty: the run's precision, with an fp32 master copy in the
    optimizer. "fp32": the parameters are their own master and are cast when used (FSDP mixed precision, autocast,
    JAX)."""
    systems: tuple[str, ...] = ()
    """Names under which published tables list this software: regular expressions, matched whole, any case."""
    since: int = 0
    """First year in which a bare product name ("Megatron-LM") means this profile."""
    defaults: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """What the software does when a user says nothing: fields of Run and Strategy (precision, optimizer, zero, ...)."""
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run's settings that do not depend on how it is split."""

    global_batch: int
    """Sequences per step."""
    seq_len: int = 0
    """Tokens per sequence (encoder tokens of an encoder-decoder); 0 is the model's own."""
    target_seq_len: int = 0
    """Decoder tokens per sequence of an encoder-decoder; 0 is the model's own, or seq_len."""
    precision: str = "bf16"
    optimizer: str = "adamw"
    framework: str = "megatron-core"
    attention: str = ""
    """"fused" or "unfused"; empty is the framework's default."""
    dropout: float | None = None
    """None is the framework's default, else the model's."""
    capacity_factor: float | None = None
    """Overrides the model's expert capacity factor; 0 is dropless."""
    routing_group: int = 0
    """Overrides how many tokens are routed together, where one-hot products dispatch them; 0 is the model's."""
    expert_imbalance: float = 1.0
    """Tokens of the busiest expert-parallel rank over the mean (1 is balanced)."""
    flops_convention: str = "megatron"
    """Which model-FLOP count MFU is defined on."""
