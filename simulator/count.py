"""Parameters and FLOPs of a model as one document: what `shardwise count` prints."""

from __future__ import annotations

from typing import Any

from simulator.arch.flops import forward_flops_per_sequence, model_flops_per_sequence
from simulator.arch.parameters import mtp_parameters, parameters
from simulator.spec.model import ModelSpec
from simulator.spec.run import CONVENTIONS


def count(model: ModelSpec, *, batch: int = 1, seq_len: int | None = None) -> dict[str, Any]:
    """Counts of one forward and backward over `batch` sequences. Parts sum to the total; conventions are named."""
    length = seq_len or model.seq_len
    target = (model.target_seq_len or length) if len(model.stacks) > 1 else 0
    counted = parameters(model)
    forward = batch * forward_flops_per_sequence(model, length, target)
    tokens = batch * (length + target)
    return {
        "model": model.name,
        "title": model.title,
        "batch": batch,
        "seq_len": length,
        "target_seq_len": target,
        "parameters": {
            "total": counted.total,
            "active": counted.active,
            "by_part": dict(counted.by_part),
            "multi_token_prediction": mtp_parameters(model),
        },
        "flops": {
            "forward": forward,
            "backward": 2.0 * forward,
            "forward_per_token": forward / tokens,
            "backward_per_token": 2.0 * forward / tokens,
            "by_convention": {
                name: batch * model_flops_per_sequence(model, length, target, name) for name in CONVENTIONS
            },
        },
    }
