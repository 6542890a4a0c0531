"""A network at a glance: every row from its parts, groups of unequal nodes by their slowest member, and the JSON."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import inf

import pytest

from simulator.cluster.link_loads import bottleneck, link_loads
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.cluster.survey import (
    SIZES_BYTES,
    _groups_like,
    axis_document,
    collective_document,
    survey_axes,
    survey_collective,
    times_by_member,
)
from simulator.cluster.traffic_map import axis_placement, times_by_algorithm
from simulator.errors import InputError
from simulator.spec.hardware import Cluster, Link, Tier
from tests.support import dgx

BASE = dgx(4)
INSIDE, BETWEEN = BASE.tiers
CLOGGED = replace(INSIDE, bandwidth_bytes_per_s=20e9)
THIN = replace(BETWEEN, bandwidth_bytes_per_s=5e9)
UNEQUAL = replace(BASE, node_tiers=(INSIDE, CLOGGED, INSIDE, INSIDE), node_uplinks=(BETWEEN, BETWEEN, BETWEEN, THIN))
"""Node 1 has slow links inside, node 3 to the network."""


def seconds(inside: Tier, between: Tier, kind: str, group: Group, algorithm: str | None = None) -> float:
    """On four equal nodes with these links."""
    equal = replace(BASE, tiers=(inside, between))
    return float(collective_time_s(equal, kind, 64e6, group, algorithm=algorithm))


def test_a_survey_times_each_size() -> None:
    group = Group(16)
    found = survey_collective(BASE, "all_gather", group, (1e5, 64e6))
    assert (found.kind, found.group, found.bottleneck) == ("all_gather", group, bottleneck(BASE, "all_gather", group))
    for row, size in zip(found.rows, (1e5, 64e6), strict=True):
        ways = times_by_algorithm(BASE, "all_gather", size, group)
        time_s = collective_time_s(BASE, "all_gather", size, group)
        assert (row.size_bytes, row.time_s, row.by_member_s) == (size, time_s, {})
        assert list(row.by_algorithm_s.items()) == list(ways.items())
        assert ways[row.algorithm] == time_s == min(ways.values())
        assert row.bus_bytes_per_s == pytest.approx(15 / 16 * size / time_s)
    # 1 KiB, 16 KiB, 128 KiB, then from 1 MiB eightfold to 256 MiB, 1 GiB... to 8 GiB.
    assert [2.0**power for power in (10, 14, 17, 20, 23, 26, 28, 30, 33)] == list(SIZES_BYTES)
    assert [row.size_bytes for row in survey_collective(BASE, "send", Group(2)).rows] == list(SIZES_BYTES)


def test_a_forced_algorithm_is_named_and_timed() -> None:
    (row,) = survey_collective(BASE, "all_reduce", Group(16), (64e6,), algorithm="ring/ll").rows
    assert (row.algorithm, row.time_s) == ("ring/ll", seconds(INSIDE, BETWEEN, "all_reduce", Group(16), "ring/ll"))
    assert row.time_s > seconds(INSIDE, BETWEEN, "all_reduce", Group(16))
    assert len(row.by_algorithm_s) == 7
    (slow,) = survey_collective(UNEQUAL, "all_reduce", Group(16), (64e6,), algorithm="ring/ll").rows
    thin, clogged = (seconds(*links, "all_reduce", Group(16), "ring/ll") for links in
                     ((INSIDE, THIN), (CLOGGED, BETWEEN)))  # fmt: skip
    assert slow.by_member_s == {
        "node 3 (a100-test, fabric at 5 GB/s)": thin, "node 1 (a100-test, fabric at 25 GB/s)": clogged,
    }  # fmt: skip
    assert slow.time_s == max(thin, clogged)
    # The ways to run it are those on links that are all as slow as the slowest.
    assert slow.by_algorithm_s == times_by_algorithm(
        replace(BASE, tiers=(CLOGGED, THIN)), "all_reduce", 64e6, Group(16)
    )


def test_no_group_waits_for_two_slow_nodes_that_it_does_not_span() -> None:
    """Nodes 0 and 1 are clogged, 2 and 3 far apart: the slower pair counts, and not one that were both."""
    late = replace(BETWEEN, latency_s=1e-3)
    apart = replace(UNEQUAL, node_uplinks=(BETWEEN, BETWEEN, BETWEEN, late))
    pairs = [seconds(*links, "all_gather", Group(16)) for links in ((CLOGGED, BETWEEN), (INSIDE, late))]
    assert seconds(CLOGGED, late, "all_gather", Group(16)) > 1.1 * max(pairs)
    (row,) = survey_collective(apart, "all_gather", Group(16), (64e6,)).rows
    (axis,) = survey_axes(apart, {"cp": Group(16)}, 64e6)
    assert row.time_s == axis.time_s == max(pairs)


def test_one_rank_takes_no_time() -> None:
    found = survey_collective(BASE, "all_reduce", Group(1), (64e6,))
    (row,) = found.rows
    assert (row.time_s, row.bus_bytes_per_s, row.by_algorithm_s, row.algorithm) == (0.0, 0.0, {}, "none")
    assert (found.bottleneck, collective_document(found)["bottleneck"]) == (None, None)


RING = tuple(Link(one=str(d), other=str((d + 1) % 4), bandwidth_bytes_per_s=1e9) for d in range(4))
ICI = Tier(name="ici", kind="ici", topology="torus", size=8, bandwidth_bytes_per_s=160e9, latency_s=1e-6, shape=(2, 4))
CURVES = {"all_reduce": {2: ((1.0, 10.0), (1e6, 10.0)), 4: ((1.0, 30.0), (1e6, 30.0))}}


@pytest.mark.parametrize(
    ("base", "kind", "name"),
    [
        (replace(dgx(1), links=RING, devices_per_node=4), "all_to_all", "pairwise"),
        (replace(dgx(1), links=RING, devices_per_node=4), "send", "pairwise"),
        (replace(dgx(1), links=RING, devices_per_node=4), "all_gather", "ring"),
        (replace(dgx(1), tiers=(ICI,)), "all_gather", "torus"),
        (replace(dgx(1), curves=CURVES), "all_reduce", "measured"),
    ],
)
def test_listed_graphs_tori_and_measured_machines_have_one_way_each(base: Cluster, kind: str, name: str) -> None:
    (row,) = survey_collective(base, kind, Group(4), (1e5,)).rows
    assert row.time_s == collective_time_s(base, kind, 1e5, Group(4)) > 0
    assert (row.algorithm, row.by_algorithm_s) == (name, {name: row.time_s})


@pytest.mark.parametrize(
    ("group", "message", "most"),
    [
        (Group(5, 8), "group(5) * stride(8) reaches device 32 of 32.", 4),
        (Group(33), "group(33) * stride(1) reaches device 32 of 32.", 32),
        (Group(12, 3), "group(12) * stride(3) reaches device 33 of 32.", 11),
        (Group(0, 100), "group(0) * stride(100) holds no device of 32.", 1),
        (Group(4, 0), "group(4) * stride(0) holds no device of 32.", 32),
    ],
)
def test_groups_beyond_the_cluster_are_refused(group: Group, message: str, most: int) -> None:
    with pytest.raises(InputError) as refused:
        survey_collective(BASE, "all_reduce", group)
    (problem,) = refused.value.problems
    assert (problem.message, problem.where, problem.hint) == (message, "--group", f"At most {most} ranks.")
    assert survey_collective(BASE, "send", Group(4, 8), (1.0,)).rows
    assert survey_collective(BASE, "send", Group(11, 3), (1.0,)).rows


def test_groups_are_sorted_by_their_slowest_member() -> None:
    """In nodes: node 1's is slow inside, the others alike. Over pairs of nodes: 0 and 1 clogged, 2 and 3 thin. Over all
    four: both at once, named by the slow card."""
    one = times_by_member(UNEQUAL, "all_gather", 64e6, Group(8))
    assert list(one) == ["node 1 (a100-test, nvlink at 20 GB/s)", "node 3 (a100-test, nvlink at 300 GB/s)",
                         "node 0 (a100-test, nvlink at 300 GB/s)"]  # fmt: skip
    plain, clogged = (seconds(inside, BETWEEN, "all_gather", Group(8)) for inside in (INSIDE, CLOGGED))
    assert list(one.values()) == [clogged, plain, plain]
    pairs = times_by_member(UNEQUAL, "all_gather", 64e6, Group(16))
    assert pairs == {
        "node 1 (a100-test, fabric at 25 GB/s)": seconds(CLOGGED, BETWEEN, "all_gather", Group(16)),
        "node 3 (a100-test, fabric at 5 GB/s)": seconds(INSIDE, THIN, "all_gather", Group(16)),
    }
    assert list(pairs.values()) == sorted(pairs.values(), reverse=True)
    every = times_by_member(UNEQUAL, "all_gather", 64e6, Group(4, 8))
    assert every == {"node 3 (a100-test, fabric at 5 GB/s)": seconds(CLOGGED, THIN, "all_gather", Group(4, 8))}
    assert times_by_member(BASE, "all_gather", 64e6, Group(8)) == {}


def test_of_groups_with_one_label_the_slower_counts() -> None:
    """Nodes 0 and 2 have thin cards; with node 1 the first pair is clogged as well."""
    mixed = replace(BASE, node_tiers=(INSIDE, CLOGGED, INSIDE, INSIDE), node_uplinks=(THIN, BETWEEN, THIN, BETWEEN))
    slower, quicker = (seconds(inside, THIN, "all_gather", Group(16)) for inside in (CLOGGED, INSIDE))
    assert slower > quicker
    label = "node 0 (a100-test, fabric at 5 GB/s)"
    assert times_by_member(mixed, "all_gather", 64e6, Group(16)) == {label: slower}
    other = replace(mixed, node_tiers=(INSIDE, INSIDE, INSIDE, CLOGGED))
    assert times_by_member(other, "all_gather", 64e6, Group(16)) == {label: slower}


def test_groups_that_do_not_tile_stand_one_after_the_other() -> None:
    eight = dgx(1)
    seven = replace(eight, devices_per_node=7)
    assert list(_groups_like(eight, Group(3))) == [(0, 1, 2), (3, 4, 5)]
    assert list(_groups_like(seven, Group(3))) == [(0, 1, 2), (3, 4, 5)]
    assert list(_groups_like(eight, Group(3, 2))) == [(0, 2, 4), (1, 3, 5)]
    assert list(_groups_like(eight, Group(2, 2))) == [(0, 2), (1, 3), (4, 6), (5, 7)]
    # A block of one rank has no stride.
    assert list(_groups_like(eight, Group(2, 5, 2, 4))) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    turned = replace(eight, rank_devices=(7, 6, 5, 4, 3, 2, 1, 0))
    assert [list(ranks) for ranks in _groups_like(turned, Group(3))] == [[7, 6, 5], [4, 3, 2]]
    assert [list(ranks) for ranks in _groups_like(turned, Group(4))] == [[7, 6, 5, 4], [3, 2, 1, 0]]


GROUPS = {"tp": Group(8), "cp": Group(1, 8), "dp": Group(2, 8), "pp": Group(2, 16)}


def test_every_axis_of_several_ranks_runs_its_own_collective() -> None:
    tp, dp, pp = survey_axes(BASE, GROUPS, 64e6)
    for found, axis, kind in ((tp, "tp", "all_reduce"), (dp, "dp", "all_reduce"), (pp, "pp", "send")):
        group = GROUPS[axis]
        assert (found.kind, found.size_bytes, found.by_member_s) == (kind, 64e6, {})
        assert found.placement == axis_placement(BASE, axis, group)
        assert found.time_s == seconds(INSIDE, BETWEEN, kind, group)
        assert found.loads == link_loads(BASE, kind, 64e6, group)
    assert (tp.ranks, dp.ranks, pp.ranks) == (tuple(range(8)), (0, 8), (0, 16))
    kinds = {"dp": "reduce_scatter"}
    (scattered,) = survey_axes(BASE, {"dp": Group(2, 8)}, 64e6, kinds)
    assert (scattered.kind, scattered.loads) == (
        "reduce_scatter",
        link_loads(BASE, "reduce_scatter", 64e6, Group(2, 8)),
    )
    turned = replace(BASE, rank_devices=tuple(reversed(range(32))))
    assert [found.ranks for found in survey_axes(turned, GROUPS, 64e6)][1:] == [(31, 23), (31, 15)]


def test_axes_of_unequal_nodes_feel_the_slowest_links() -> None:
    slow = replace(BASE, tiers=(CLOGGED, THIN))
    _, dp, _ = survey_axes(UNEQUAL, GROUPS, 64e6)
    pairs = [seconds(*links, "all_reduce", Group(2, 8)) for links in ((CLOGGED, BETWEEN), (INSIDE, THIN))]
    assert sorted(dp.by_member_s.values()) == sorted(pairs)
    assert dp.time_s == max(pairs)
    assert (dp.placement, dp.loads) == (axis_placement(slow, "dp", GROUPS["dp"]), link_loads(slow, "all_reduce", 64e6,
                                                                                             GROUPS["dp"]))  # fmt: skip


def test_surveys_as_json() -> None:
    found = survey_collective(UNEQUAL, "all_reduce", Group(2, 8), (64e6,))
    (row,) = found.rows
    limit = found.bottleneck
    assert limit is not None
    assert collective_document(found) == {
        "kind": "all_reduce", "group": 2, "stride": 8, "bottleneck": {**asdict(limit), "drain_s": limit.drain_s},
        "rows": [{"size_bytes": 64e6, "time_s": row.time_s, "bus_bytes_per_s": row.bus_bytes_per_s,
                  "algorithm": row.algorithm, "by_algorithm_s": row.by_algorithm_s, "by_member_s": row.by_member_s}],
    }  # fmt: skip
    tp, dp, _ = survey_axes(UNEQUAL, GROUPS, 64e6)
    (load,) = dp.loads
    assert axis_document(dp) == {
        "axis": "dp", "size": 2, "tier": "fabric", "units": {"nvlink": 2, "fabric": 1}, "sharing": {"fabric": 8.0},
        "up_bytes_per_s": dp.placement.up_bytes_per_s, "kind": "all_reduce", "size_bytes": 64e6, "time_s": dp.time_s,
        "by_member_s": dp.by_member_s, "first_group": [0, 8], "loads": [{**asdict(load), "drain_s": load.drain_s}],
    }  # fmt: skip
    assert tp.placement.up_bytes_per_s == inf
    assert axis_document(tp)["up_bytes_per_s"] is None
