"""Everything around a program that its costs depend on, handed along as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from simulator.cluster.placement import Group, axis_groups
from simulator.spec.hardware import Cluster
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Run, strategy, software, cluster, and the communication groups that the strategy forms on it."""

    run: Run
    strategy: Strategy
    framework: Framework
    cluster: Cluster
    """Equal devices on equal links: of unequal nodes, one rank's own device and node."""
    groups: Mapping[str, Group]
    links: Mapping[str, Cluster] = field(default_factory=dict)
    """By axis the cluster that its group feels, where the group's slowest member is not the rank's own node."""

    def felt_by(self, axis: str) -> Cluster:
        """The cluster whose links the group of an axis runs on."""
        return self.links.get(axis, self.cluster)

    @property
    def overlaps_grad_reduce(self) -> bool:
        """Gradients are reduced beside the backward: the strategy's choice, else the framework's."""
        chosen = self.strategy.overlap_grad_reduce
        return self.framework.overlap_grad_reduce if chosen is None else chosen

    @property
    def overlaps_param_gather(self) -> bool:
        """Updated parameters are gathered beside the next forward."""
        chosen = self.strategy.overlap_param_gather
        return self.framework.overlap_param_gather if chosen is None else chosen


def splits_sends(strategy: Strategy, software: Framework) -> bool:
    """Whether a send carries 1 / tp of the activation, which the receiver's tp group gathers."""
    return not strategy.sequence_parallel and software.scatter_gather_p2p


def groups_of(cluster: Cluster, strategy: Strategy) -> dict[str, Group]:
    """Communication groups by axis, with ZeRO's: "shard" (ranks that share one sharded copy) and "replicas" (of it)."""
    groups = dict(
        axis_groups(
            cluster, tp=strategy.tp, cp=strategy.cp, ep=strategy.ep, etp=strategy.etp, dp=strategy.dp, pp=strategy.pp,
            order=strategy.order,
        )
    )  # fmt: skip
    joined = groups["dp_cp"]
    if not strategy.shard_group:
        return groups | {"shard": joined, "replicas": Group(1)}
    ranks = strategy.shard_group * strategy.cp
    return groups | {
        "shard": Group(ranks, joined.stride),
        "replicas": Group(strategy.dp // strategy.shard_group, joined.stride * ranks),
    }
