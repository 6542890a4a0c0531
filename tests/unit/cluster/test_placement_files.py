"""Rank files, explicit placements and fields of groups: what they are, and where a wrong one is said to be wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.cluster.placement import (
    Group,
    all_groups,
    axis_groups,
    axis_ranks,
    placed_ranks,
    read_rank_file,
    single_node_group,
    with_rank_file,
)
from simulator.errors import InputError, Problem
from simulator.spec.hardware import Link
from tests.unit.cluster.fabrics import cluster


def _problems(path: Path, text: str, devices: int = 4) -> tuple[Problem, ...]:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        read_rank_file(path, devices)
    return refused.value.problems


def test_every_line_of_a_rank_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ranks"
    found = _problems(path, "# first\n0\n-1\n\n4 # one too many\n0\n")
    assert [(problem.where, problem.message) for problem in found] == [
        (f"{path}:3", "'-1' is no device number."),
        (f"{path}:5", "device 4 is outside 0..3."),
        (f"{path}:6", "device 0 is used already, in line 2."),
    ]
    assert [(p.where, p.message) for p in _problems(path, "# nothing\n\n")] == [(str(path), "no device is listed.")]


def test_ranks_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ranks"
    path.write_text("\n".join(str(15 - rank) for rank in range(16)) + "\n", encoding="utf-8")
    plain = cluster(nodes=2)
    placed = with_rank_file(plain, path)
    assert placed == replace(plain, rank_devices=tuple(range(15, -1, -1)))
    assert axis_ranks(plain, Group(8, 2)) == (tuple(range(0, 16, 2)), tuple(range(1, 16, 2)))
    assert axis_ranks(placed, Group(8, 2)) == (tuple(range(15, 0, -2)), tuple(range(14, -1, -2)))
    assert placed_ranks(Group(2, 3), placed.rank_devices) == (15, 12)
    assert placed_ranks(Group(2, 3), placed.rank_devices, 1) == (14, 11)


def test_a_rank_file_places_every_device_and_no_torus(tmp_path: Path) -> None:
    path = tmp_path / "ranks"
    path.write_text("0\n1\n", encoding="utf-8")
    plain = cluster(nodes=1)
    with pytest.raises(InputError) as refused:
        with_rank_file(plain, path)
    (problem,) = refused.value.problems
    assert problem == Problem("2 ranks are listed, but 1xhopper has 8 devices: one line each.", str(path))
    torus = replace(plain, tiers=(replace(plain.tiers[0], topology="torus", shape=(2, 4)),))
    with pytest.raises(InputError) as refused:
        with_rank_file(torus, path)
    (problem,) = refused.value.problems
    assert problem == Problem("rank files on a torus (1xhopper) are not modelled.", str(path), "Use --order.")
    path.write_text("\n".join(map(str, range(8))), encoding="utf-8")
    listed = replace(torus, links=(Link(one="0", other="1", bandwidth_bytes_per_s=1.0),))
    assert with_rank_file(listed, path).rank_devices == tuple(range(8))


def test_groups_that_leave_devices_over_are_refused() -> None:
    assert all_groups(Group(2, 1, 1), 4) == ((0, 1), (2, 3))
    assert all_groups(Group(4, 1, 2, 4), 8) == ((0, 1, 4, 5), (2, 3, 6, 7))
    for group, devices in ((Group(3), 8), (Group(2, 3), 8), (Group(2, 4), 4), (Group(2, 2), 6)):
        message = f"groups of {group.size} with stride {group.stride} do not tile {devices} devices"
        with pytest.raises(InputError, match=message):
            all_groups(group, devices)


def test_groups_start_at_the_first_device_unless_told() -> None:
    assert Group(4, 3, 2, 10).ranks() == (0, 3, 10, 13)
    assert Group(4, 3, 2, 10).ranks(5) == (5, 8, 15, 18)
    assert Group(np.float64(4.0), np.int64(2)).ranks() == (0, 2, 4, 6)
    assert single_node_group(3) == Group(3, 1, 1, 0, tiled=False)
    assert Group(3).tiled is True


def test_axes_of_unequal_degrees_by_hand() -> None:
    """2 x 3 x 5 x 7 ranks. A stage's 30 ranks fold as etp 2, ep 5, 3 replicas; pp outermost, then between cp and dp."""
    outermost = axis_groups(cluster(nodes=27), tp=2, cp=3, dp=5, pp=7, etp=2, ep=5)
    assert outermost == {
        "tp": Group(2, 1), "cp": Group(3, 2), "dp": Group(5, 6), "pp": Group(7, 30), "dp_cp": Group(15, 2),
        "etp": Group(2, 1), "ep": Group(5, 2), "edp": Group(3, 10),
    }  # fmt: skip
    # Stages are runs of 6 ranks 42 apart: five pairs of neighbours are two runs of 3, the last cut short.
    between = axis_groups(cluster(nodes=27), tp=2, cp=3, dp=5, pp=7, etp=2, ep=3, order=("tp", "cp", "pp", "dp"))
    assert between == {
        "tp": Group(2, 1), "cp": Group(3, 2), "pp": Group(7, 6), "dp": Group(5, 42), "dp_cp": Group(15, 2, 5, 42),
        "etp": Group(2, 1), "ep": Group(3, 2), "edp": Group(5, 42),
    }  # fmt: skip
    whole = axis_groups(cluster(nodes=27), tp=2, cp=3, dp=5, pp=7, etp=1, ep=6, order=("tp", "cp", "pp", "dp"))
    assert (whole["ep"], whole["edp"]) == (Group(6, 1), Group(5, 42))
    runs = axis_groups(cluster(nodes=27), tp=2, cp=3, dp=5, pp=7, etp=1, ep=30, order=("tp", "cp", "pp", "dp"))
    assert (runs["ep"], runs["edp"]) == (Group(30, 1, 5, 42), Group(1, 210))
    for groups in (outermost, between, runs):
        for group in groups.values():
            assert {type(field) for field in (group.size, group.stride, group.blocks, group.block_stride)} == {int}


def test_degrees_left_out_are_one() -> None:
    groups = axis_groups(cluster(nodes=1))
    assert {axis: group.size for axis, group in groups.items()} == dict.fromkeys(
        ("tp", "cp", "dp", "pp", "dp_cp", "etp", "ep", "edp"), 1)  # fmt: skip
    assert axis_groups(cluster(nodes=1), dp=4, ep=2)["edp"] == Group(2, 2)


def test_columns_of_degrees_keep_whole_numbers_and_block_strides() -> None:
    """Column 0 has its stages in two runs of 2 ranks; column 1 has one stage."""
    groups = axis_groups(cluster(nodes=1), tp=2, dp=2, pp=np.array([2, 1]), ep=4, order=("tp", "pp", "dp", "cp"))
    found = groups["ep"]
    assert [np.broadcast_to(part, 2).tolist() for part in (found.size, found.stride, found.blocks)] == [
        [4, 4], [1, 1], [2, 2]]  # fmt: skip
    assert np.broadcast_to(found.block_stride, 2).tolist() == [4, 2]
    for axis in ("ep", "edp", "etp"):
        fields = (groups[axis].size, groups[axis].stride, groups[axis].blocks, groups[axis].block_stride)
        assert {np.asarray(field).dtype.kind for field in fields} == {"i"}


def test_gradients_go_round_the_inner_of_cp_and_dp_first() -> None:
    """2 x 5 x 3 ranks, dp inside cp: one run of 15; with 7 stages between, three runs of 5 that start 70 apart."""
    for order, joined in (
        ("tp dp cp pp", Group(15, 2)), ("tp dp pp cp", Group(15, 2, 3, 70)),
        ("tp cp dp pp", Group(15, 2)), ("tp cp pp dp", Group(15, 2, 5, 42)),
    ):  # fmt: skip
        assert axis_groups(cluster(nodes=27), tp=2, cp=3, dp=5, pp=7, order=order.split())["dp_cp"] == joined


def test_as_many_ranks_as_devices_are_not_too_many() -> None:
    assert axis_groups(cluster(nodes=1), tp=8)["tp"] == Group(8, 1)
    with pytest.raises(InputError, match=r"tp\(3\) \* cp\(1\) \* dp\(3\) .* = 9 ranks .* 8 devices of 1xhopper"):
        axis_groups(cluster(nodes=1), tp=3, dp=3)
    assert axis_groups(cluster(nodes=1), tp=np.array([3, 9]))["tp"].size.tolist() == [3, 9]


def test_an_order_names_every_axis_once() -> None:
    with pytest.raises(InputError) as refused:
        axis_groups(cluster(), order=("tp", "cpx", "dp", "dp", "pp"))
    assert list(refused.value.problems) == [
        Problem("cpx is no axis of a placement.", "order", "Did you mean cp?"),
        Problem("cp stands 0 times in tp-cpx-dp-dp-pp; it must stand once.", "order"),
        Problem("dp stands 2 times in tp-cpx-dp-dp-pp; it must stand once.", "order"),
    ]
