"""What a plan answers: the best strategies with their estimates, the proof, and what was refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload

from simulator.pictures import Drawable
from simulator.project.training import Bill
from simulator.result import Estimate
from simulator.spec.strategy import Strategy
from simulator.units import format_bytes, format_percent, format_time, format_usd

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Why nothing better was missed: every legal strategy was refused for memory, bounded above the best, or run.

    `gap` is how much better than the best found an unrun strategy could still be, relative to the best; 0 when proven.
    """

    considered: int
    legal: int
    fits: int
    """Legal ones less those refused for memory. In a large space, rows whose work alone takes longer than the best
    found are not asked whether they fit, and count as fitting."""
    bounded: int
    """Strategies bounded from below: all legal ones, unless time ran out before."""
    scored: int
    """Strategies scored with their stages and their memory."""
    refined: int
    """Strategies bounded again by the finer bound."""
    engine_runs: int
    gap: float

    @property
    def optimal(self) -> bool:
        return self.gap == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One strategy of a plan."""

    strategy: Strategy
    estimate: Estimate
    bound_s: float
    """Seconds that this strategy was known not to beat before it was run."""
    faster_probability: float
    """The probability that it is measured faster than the best (`plan/ties.py`); 0.5 for the best itself."""
    tied: bool
    """The estimate cannot tell it from the best: that probability is at least a tenth."""
    binds: str
    """What its time goes into, the largest parts first."""
    why: str
    """What it loses against the best and what it gains, largest first; of the best, what its time goes into."""
    also: tuple[tuple[str, ...], ...] = ()
    """Other placements with the same time and memory."""
    bill: Bill | None = None
    """What training takes under it, where tokens, conditions or dollars were asked about."""


@dataclass(frozen=True, kw_only=True)
class Plan(Drawable):
    """The answer of `plan`: the best strategies in order."""

    model: str
    cluster: str
    devices: int
    objective: str
    objective_words: str
    """What the objective asks for on these devices."""
    entries: tuple[Planned, ...]
    proof: Proof
    rejected: Mapping[str, int]
    wall_s: float
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Planned]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Planned: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Planned, ...]: ...
    def __getitem__(self, index: int | slice) -> Planned | tuple[Planned, ...]:
        return self.entries[index]

    def to_frame(self) -> pd.DataFrame:
        """One row per strategy: its fields, then step time [s], tokens/s, MFU, peak memory [B]."""
        import pandas as pd

        return pd.DataFrame([
            {**asdict(entry.strategy), "step_time_s": entry.estimate.step_time_s,
             "tokens_per_s": entry.estimate.tokens_per_s, "mfu": entry.estimate.mfu,
             "peak_memory_bytes": entry.estimate.peak_memory_bytes, "tied": entry.tied,
             "faster_probability": entry.faster_probability}
            for entry in self.entries
        ])  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `shardwise plan --json`."""
        proof = self.proof
        return {
            "model": self.model, "cluster": self.cluster, "devices": self.devices, "objective": self.objective,
            "objective_words": self.objective_words,
            "considered": proof.considered, "legal": proof.legal, "fits": proof.fits, "bounded": proof.bounded,
            "scored": proof.scored,
            "refined": proof.refined, "engine_runs": proof.engine_runs, "gap": proof.gap, "optimal": proof.optimal,
            "wall_s": self.wall_s, "rejected": dict(self.rejected),
            "strategies": [
                {"strategy": asdict(entry.strategy), "estimate": entry.estimate.to_dict(), "bound_s": entry.bound_s,
                 "tied": entry.tied, "faster_probability": entry.faster_probability, "binds": entry.binds,
                 "last_rank": entry.estimate.time.rank, "why": entry.why,
                 "also": ["-".join(order) for order in entry.also],
                 **({"bill": bill_dict(entry.bill)} if entry.bill is not None else {})}
                for entry in self.entries
            ],
            "notes": list(self.notes),
        }  # fmt: skip


def bill_dict(bill: Bill) -> dict[str, Any]:
    """The figures of a bill that a plan states."""
    names = ("tokens", "steps", "ideal_days", "days", "device_hours", "usd")
    return {name: getattr(bill, name) for name in names} | {"useful_fraction": bill.goodput.useful_fraction}


def why_lost(other: Estimate, best: Estimate, paid: Bill | None, least: Bill | None, *, timed: bool) -> str:
    """What one strategy loses against the best and gains, in words: memory where that was asked for (not `timed`),
    dollars where both bills have a price, and the largest differences between the parts of their times.
    """
    said = []
    more_bytes = other.peak_memory_bytes - best.peak_memory_bytes
    if not timed and more_bytes > 0.0:
        said.append(f"memory +{format_bytes(more_bytes, 3)}")
    if paid is not None and least is not None and paid.usd is not None and least.usd is not None:
        sign = "+" if paid.usd >= least.usd else "-"
        said.append(f"{sign}{format_usd(abs(paid.usd - least.usd))}")
    return ", ".join([*said, _parts_lost(other, best)])


def _parts_lost(other: Estimate, best: Estimate) -> str:
    names = {*other.time.parts, *best.time.parts}
    change = {name: other.time.parts.get(name, 0.0) - best.time.parts.get(name, 0.0) for name in names}
    floor = 0.002 * best.step_time_s
    large = [(s, name) for name, s in change.items() if abs(s) >= floor]
    parts = sorted(large, key=lambda item: (-abs(item[0]), item[1]))
    words = ", ".join(f"{name} {'+' if s > 0 else '-'}{format_time(abs(s))}" for s, name in parts[:4])
    return words or "the same within 0.2 % in every part"


def binds(estimate: Estimate) -> str:
    """The largest parts of a step, in words."""
    parts = sorted(estimate.time.parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {format_percent(s / estimate.step_time_s, 2)}" for name, s in parts[:_BINDING])


_BINDING = 4
"""Parts of a step that are named."""
