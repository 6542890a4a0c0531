"""What an import gives and what every export must do: say all of a strategy, or refuse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Any

from simulator.errors import Complaints
from simulator.parallel.lower import layers_of_stages
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy

_NOT_OF_A_FRAMEWORK = {"framework", "expert_imbalance", "flops_convention"}
"""Fields of a run that say what is assumed or how it is counted, not what a framework is told."""
_OVERLAPS = ("overlap_grad_reduce", "overlap_param_gather", "overlap_tp", "overlap_moe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The strategy and the fields of `Run` that a file says; `notes` are what was taken or left, in words."""

    strategy: Strategy
    run: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def exportable(model: ModelSpec, run: Run, strategy: Strategy, framework: Framework) -> tuple[Run, Strategy]:
    """Run and strategy with everything said that an estimate takes from elsewhere.

    The lengths come from the model, the overlaps from the framework's profile, and the layers of each stage are said
    where an even split leaves a remainder: frameworks place it differently.
    """
    said = {name: getattr(framework, name) for name in _OVERLAPS if getattr(strategy, name) is None}
    uneven = strategy.stages > 1 and model.layers % strategy.stages
    if uneven and not strategy.layers_per_stage:
        said["layers_per_stage"] = layers_of_stages(model.layers, strategy.stages)
    length, target = run.seq_len or model.seq_len, run.target_seq_len or model.target_seq_len
    return replace(run, seq_len=length, target_seq_len=target), replace(strategy, **said)


def split_of(counts: tuple[int, ...]) -> tuple[int, ...]:
    """`layers_per_stage` of some counts: empty where they are one even split without a remainder."""
    return () if len(set(counts)) == 1 else counts


def refuse_unwritten(
    broken: Complaints, run: Run, strategy: Strategy, *, target: str, written: Iterable[str]
) -> None:
    """Complain about every field that differs from its default and is not among the `written` ones."""
    names = set(written) | _NOT_OF_A_FRAMEWORK
    for value in (strategy, run):
        for entry in fields(value):
            given = getattr(value, entry.name)
            if entry.name not in names and given not in (_default(entry), None):
                broken.add(f"{entry.name} = {_text(given)} is not written: {target} has no setting for it here.",
                           where=entry.name)  # fmt: skip


def _default(entry: Field[Any]) -> Any:
    return None if entry.default is MISSING else entry.default


def _text(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
