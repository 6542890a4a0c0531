"""First ring of validation: what we count equals what torch counts, with difference 0.

Reference modules (`model`, `blocks`, `experts`, `functions`) build every architecture as plain torch from our own
specs; `tally` counts on them without a GPU, `ours` reads the same figures off our program. Needs `shardwise[torch]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from simulator.catalog import load_model, names
from simulator.errors import InputError
from simulator.spec.model import ModelSpec


def count_rows(models: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows {model, what, ours, torch, difference, note} of parameters, FLOPs and bytes kept for backward.

    Every catalogue model where none is named. Raises InputError without torch, or for a name that is not a model.
    """
    if find_spec("torch") is None:
        raise InputError(["counting with torch needs torch 2.13: pip install 'shardwise[torch]'"])
    return [row for name in (models or names("models")) for row in _model_rows(load_model(name))]


def _model_rows(model: ModelSpec) -> Iterator[dict[str, Any]]:
    from simulator.arch.parameters import COUNTING, mtp_parameters, parameters
    from simulator.parallel.recompute import Policy
    from simulator.validate.torch_counts import ours, tally
    from simulator.validate.torch_counts.blocks import Setting

    whole = Setting(model=model, kernels=COUNTING, policy=Policy())
    counted = sum(tally.parameters_by_part(whole).values())
    depths = model.head.mtp_layers
    note = f"with {depths} multi-token prediction layer(s)" if depths else ""
    yield _row(model, "parameters", parameters(model).total + mtp_parameters(model), counted, note)
    part = ours.one_of_each(model)
    batch, seq_len = _shape(part)
    note = f"each kind of layer once and both ends; batch {batch}, {seq_len} tokens, flash attention"
    setting = Setting(model=part, kernels=COUNTING, policy=Policy())
    forward, backward = ours.flops(ours.segments(part, COUNTING, batch, seq_len), Policy())
    torch_forward, torch_backward = tally.reference_flops(setting, batch, seq_len)
    yield _row(model, "forward FLOPs", forward, torch_forward, note)
    yield _row(model, "backward FLOPs", backward, torch_backward, note)
    saved = sum(ours.saved_sizes(ours.segments(part, COUNTING, batch, seq_len), Policy()))
    yield _row(model, "bytes kept for backward", saved, sum(tally.reference_saved(setting, batch, seq_len)), note)


def _shape(model: ModelSpec) -> tuple[int, int]:
    """A batch of 64-token sequences that gives every expert the same whole number of rows, at every level of gating."""
    seq_len, batch = 64, 2
    experts = [spec.experts for stack in model.stacks for spec, _ in stack.runs if spec.experts is not None]
    for spec in experts:
        groups = {spec.count, spec.branching or 1}
        while any((batch * seq_len * spec.visited * (spec.capacity_factor or 1.0)) % group for group in groups):
            batch += 1
    return batch, seq_len


def _row(model: ModelSpec, what: str, ours: int, theirs: int, note: str) -> dict[str, Any]:
    return {"model": model.name, "what": what, "ours": ours, "torch": theirs, "difference": ours - theirs, "note": note}
