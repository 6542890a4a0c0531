"""How the work is split: one parallel strategy, as a frozen value.

The numeric degrees may also be numpy arrays (DESIGN section 2): the same formulas then score a column of
strategies. `Strategy` itself is always one strategy.
"""

from __future__ import annotations

from dataclasses import dataclass

AXES = ("tp", "cp", "ep", "dp", "pp")
SCHEDULES = (
    "gpipe", "1f1b", "eager-1f1b", "interleaved", "interleaved-bfs", "zb-h1", "zb-h2", "zbv",
    "v-half", "v-min", "dualpipe", "dualpipev", "chimera",
)  # fmt: skip
FREE_RUNNING = ("zb-h1", "zb-h2", "zbv", "v-half", "v-min")
"""Schedules whose ranks begin the next step without a barrier (sail-sg/zero-bubble: optimizer post-validation)."""
RECOMPUTE = ("none", "selective", "full", "modules")
RECOMPUTE_MODULES = (
    "core_attn", "attention", "mlp", "moe", "moe_act", "layernorm", "mla_up_proj", "shared_experts",
)  # fmt: skip
CONTEXT_KINDS = ("ring", "all-gather", "ulysses")
OFFLOAD = ("none", "optimizer", "parameters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """Degrees, schedule and options of one parallel strategy.

    Attention and dense layers use tp * cp * dp * pp devices. Experts fold the same devices of one pipeline
    stage as etp * ep * expert_dp with etp * ep * expert_dp = tp * cp * dp (Megatron's parallel folding).
    """

    tp: int = 1
    """Tensor-parallel degree."""
    pp: int = 1
    """Pipeline-parallel degree (ranks, not stages)."""
    dp: int = 1
    """Data-parallel degree: replicas, or shards of them under ZeRO / FSDP."""
    cp: int = 1
    """Context-parallel degree."""
    ep: int = 1
    """Expert-parallel degree, borrowed from dp * cp * tp."""
    etp: int = 1
    """Tensor-parallel degree inside each expert."""
    vp: int = 1
    """Virtual stages per pipeline rank."""
    schedule: str = "1f1b"
    micro_batch: int = 1
    """Sequences per micro-batch and replica."""
    zero: int = 0
    """ZeRO stage: 0 none, 1 optimizer, 2 + gradients, 3 + parameters (FSDP)."""
    shard_group: int = 0
    """HSDP: ranks that share one sharded copy; 0 is all of dp."""
    reshard_after_forward: bool = True
    """ZeRO-3 / FSDP: free gathered parameters after the forward pass (and gather again in backward)."""
    sequence_parallel: bool = True
    """Split norm and dropout regions over tp along the sequence (no effect at tp = 1)."""
    context_kind: str = "ring"
    recompute: str = "none"
    recompute_modules: tuple[str, ...] = ()
    """With recompute = "modules": which of RECOMPUTE_MODULES."""
    recompute_layers: int | tuple[int, ...] = 0
    """With recompute = "full": layers of each of the pp * vp stages that are recomputed, the first ones; 0 is all. A
    tuple says it stage by stage in model order; there 0 is none."""
    offload_inputs: bool = False
    """With recompute = "full": the layer inputs that it keeps wait in host memory (MaxText decoder_layer_input =
    offload). Their transfers are taken as hidden: 2 bytes per element against the work of a whole layer."""
    offload: str = "none"
    """States that rest in host memory: the "optimizer" (its states, master copies and, from ZeRO-2, gradients), or the
    "parameters" of ZeRO-3 too."""
    order: tuple[str, ...] = AXES
    """Placement: axes from the innermost (neighbouring ranks) outwards."""
    layers_per_stage: tuple[int, ...] = ()
    """Layers of each of the pp * vp stages in model order; empty is an even split."""
    group_size: int = 0
    """Interleaved schedules: consecutive micro-batches per virtual stage; 0 is pp (depth-first)."""
    overlap_grad_reduce: bool | None = None
    """None is the framework's default, for this and the next three."""
    overlap_param_gather: bool | None = None
    overlap_tp: bool | None = None
    overlap_moe: bool | None = None

    @property
    def devices(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    @property
    def stages(self) -> int:
        """Pipeline stages in model order: pp * vp."""
        return self.pp * self.vp

    @property
    def expert_dp(self) -> int:
        """Replicas of each expert: tp * cp * dp / (ep * etp)."""
        return self.tp * self.cp * self.dp // (self.ep * self.etp)
