"""How wrong we would be about a family that nobody had looked at: scored without the profiles written for it alone.

A framework profile says what software does, with its source; but one that a single family of runs uses was written
with that family in view. Without it the family's rows fall back on a profile that other families share, or on the
generic one, as the rows of a system that we never heard of would. The kernel constants see no run at all, so they
are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.intervals import kin
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework
from simulator.validate.configure import Facts
from simulator.validate.runs import PublishedRun
from simulator.validate.score import Estimator, ScoredRow, score, summary

GENERIC = frozenset({"pytorch", "torch-fsdp", "megatron-core", "maxtext"})
"""What a system that no profile names falls back on (`validate/configure.py`): never hidden."""


@dataclass(frozen=True)
class _Without:
    """Facts that lack some framework profiles."""

    facts: Facts
    hidden: frozenset[str]

    @property
    def models(self) -> Mapping[str, ModelSpec]:
        return self.facts.models

    @property
    def frameworks(self) -> Mapping[str, Framework]:
        return {name: profile for name, profile in self.facts.frameworks.items() if name not in self.hidden}

    def cluster(
        self, device: str, devices: int, devices_per_node: int | None, nic_bytes_per_s: float | None,
        machine: str = "",
    ) -> Cluster:  # fmt: skip
        return self.facts.cluster(device, devices, devices_per_node, nic_bytes_per_s, machine)


def own_profiles(scored: Iterable[ScoredRow]) -> dict[str, frozenset[str]]:
    """The profiles that only one family (or its kin) uses, by kin."""
    users: dict[str, set[str]] = defaultdict(set)
    for row in scored:
        users[row.framework].add(kin(row.family))
    own: dict[str, set[str]] = defaultdict(set)
    for profile, families in users.items():
        if len(families) == 1 and profile not in GENERIC:
            own[next(iter(families))].add(profile)
    return {name: frozenset(profiles) for name, profiles in own.items()}


def newcomers(
    rows: Sequence[PublishedRun], scored: Sequence[ScoredRow], estimator: Estimator, facts: Facts
) -> dict[str, dict[str, Any]]:
    """Figures of each family that has profiles of its own, had it none; families without are left out."""
    own = own_profiles(scored)
    found: dict[str, dict[str, Any]] = {}
    for family in dict.fromkeys(row.family for row in scored if kin(row.family) in own):
        mine = [row for row in rows if row.family == family]
        found[family] = summary(score(mine, estimator, _Without(facts, own[kin(family)])).rows)
    return found
