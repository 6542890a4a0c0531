"""Parameter counts, read off the same operations that cost time and memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from simulator.arch.layer import embedding_segment, head_segment, layer_operations, mtp_segment, norm_segment
from simulator.arch.operations import Operation, Weight
from simulator.arch.shard import Kernels, Shard
from simulator.spec.model import LayerSpec, ModelSpec

COUNTING = Kernels(
    fused_attention=True, attention_kernel="library", fused_softmax=True, fused_bias_activation=True,
    fused_bias_dropout=True, fused_norm=True, fused_rope=True, fused_cross_entropy=True, parallel_cross_entropy=True,
    compiled=False, dropout=False, activation_dtype="bf16", gemm_dtype="bf16", logits_dtype="fp32",
    overlap_tp_grad=False, overlap_tp=False, overlap_moe=False,
)  # fmt: skip
ONE_TOKEN = Shard(micro_batch=1, seq_len=1)
"""Any kernels and lengths will do: parameters do not depend on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Exact counts. `by_part` sums to `total`; `active` is what one token visits."""

    total: int
    active: int
    by_part: Mapping[str, int]


def parameters(model: ModelSpec) -> Parameters:
    """Count every parameter of a model, unsharded and with its vocabulary unpadded.

    Multi-token-prediction modules are a part of their own, outside `total` (publications count them apart).
    """
    by_part: dict[str, int] = {}
    inactive = 0
    for stack in model.stacks:
        for spec, count in stack.runs:
            operations = layer_operations(spec, model, shard=ONE_TOKEN, kernels=COUNTING)
            _add(by_part, operations, count)
            inactive += _idle_expert_parameters(spec, operations) * count
        _add(by_part, norm_segment(model, stack, shard=ONE_TOKEN, kernels=COUNTING).operations, 1)
    _add(by_part, embedding_segment(model, shard=ONE_TOKEN, kernels=COUNTING).operations, 1)
    _add(by_part, head_segment(model, shard=ONE_TOKEN, kernels=COUNTING).operations, 1)
    total = sum(by_part.values())
    return Parameters(total=total, active=total - inactive, by_part=by_part)


def mtp_parameters(model: ModelSpec) -> int:
    """Parameters of the multi-token-prediction modules, which publications count apart from the total."""
    if not model.head.mtp_layers:
        return 0
    segment = mtp_segment(model, shard=ONE_TOKEN, kernels=COUNTING)
    return model.head.mtp_layers * sum(_elements(weight) for weight in _weights(segment.operations))


def _elements(weight: Weight) -> int:
    """Elements of an unsharded weight, which are whole."""
    return round(float(weight.elements))


def _weights(operations: Iterable[Operation]) -> list[Weight]:
    return [weight for operation in operations for weight in operation.weights]


def _add(by_part: dict[str, int], operations: Iterable[Operation], count: int) -> None:
    for weight in _weights(operations):
        part = _part(weight)
        by_part[part] = by_part.get(part, 0) + _elements(weight) * count


def _part(weight: Weight) -> str:
    """Group a weight by its block: attention, mlp, experts, router, shared experts, norms, embedding, head."""
    name = weight.name
    if weight.sharing == "expert":
        return "experts"
    if name.startswith("moe.router"):
        return "router"
    if name.startswith("moe.shared"):
        return "shared_experts"
    if name.endswith("norm"):
        return "norms"
    return name.partition(".")[0]


def _idle_expert_parameters(spec: LayerSpec, operations: Iterable[Operation]) -> int:
    """Parameters of the experts that one token does not visit."""
    if spec.experts is None:
        return 0
    held = sum(_elements(weight) for weight in _weights(operations) if weight.sharing == "expert")
    return held // spec.experts.count * (spec.experts.count - spec.experts.visited)
