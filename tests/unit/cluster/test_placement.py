"""Groups of each axis against ranks enumerated the way Megatron numbers them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from simulator.cluster.placement import all_groups, axis_groups, placed_ranks, read_rank_file
from simulator.errors import InputError
from tests.unit.cluster.fabrics import cluster

DEGREES = {"tp": 2, "cp": 2, "dp": 4, "pp": 2}


def enumerated(order: tuple[str, ...], axes: tuple[str, ...]) -> set[tuple[int, ...]]:
    """Groups over `axes`: ranks that agree in every other coordinate, found by listing all coordinates."""
    dense = [axis for axis in order if axis != "ep"]
    groups: dict[tuple[int, ...], list[int]] = {}
    for digits in product(*(range(DEGREES[axis]) for axis in reversed(dense))):
        place = dict(zip(reversed(dense), digits, strict=True))
        rank, weight = 0, 1
        for axis in dense:
            rank, weight = rank + place[axis] * weight, weight * DEGREES[axis]
        groups.setdefault(tuple(place[axis] for axis in dense if axis not in axes), []).append(rank)
    return {tuple(sorted(ranks)) for ranks in groups.values()}


ORDERS = [("tp", "cp", "ep", "dp", "pp"), ("tp", "cp", "pp", "dp"), ("tp", "dp", "pp", "cp"), ("pp", "dp", "cp", "tp")]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("axis", ["tp", "cp", "dp", "pp", "dp_cp"])
def test_groups_are_those_of_enumeration(order: tuple[str, ...], axis: str) -> None:
    group = axis_groups(cluster(), **DEGREES, order=order)[axis]
    axes = ("dp", "cp") if axis == "dp_cp" else (axis,)
    assert {tuple(sorted(ranks)) for ranks in all_groups(group, 32)} == enumerated(order, axes)


@pytest.mark.parametrize("order", ORDERS)
def test_expert_groups_tile_one_stage(order: tuple[str, ...]) -> None:
    """ep x etp x edp ranks that share a corner are one pipeline stage, and each axis meets the others once."""
    groups = axis_groups(cluster(), **DEGREES, ep=4, etp=2, order=order)
    stages = enumerated(order, ("tp", "cp", "dp"))
    for stage in stages:
        first = stage[0]
        covered = {
            rank
            for replica in groups["edp"].ranks(first)
            for expert in groups["ep"].ranks(replica)
            for rank in groups["etp"].ranks(expert)
        }
        assert covered == set(stage)


def test_megatron_example_of_expert_groups() -> None:
    """tp 2, cp 1, dp 8, ep 4, etp 1: expert groups are four neighbours, replicas four apart."""
    groups = axis_groups(cluster(nodes=2), tp=2, dp=8, ep=4, etp=1)
    assert groups["ep"].ranks() == (0, 1, 2, 3)
    assert groups["edp"].ranks() == (0, 4, 8, 12)


def test_arrays_agree_with_scalars() -> None:
    tp, pp = np.array([1, 2, 4, 8]), np.array([4, 2, 1, 1])
    for order in ORDERS:
        columns = axis_groups(cluster(), tp=tp, dp=4, pp=pp, ep=4, etp=np.array([1, 1, 2, 4]), order=order)
        for i in range(4):
            row = axis_groups(cluster(), tp=int(tp[i]), dp=4, pp=int(pp[i]), ep=4, etp=[1, 1, 2, 4][i], order=order)
            for axis, group in row.items():
                column = columns[axis]
                fields = [np.broadcast_to(getattr(column, f), 4)[i] for f in ("size", "stride", "blocks")]
                assert fields == [group.size, group.stride, group.blocks], axis


def test_too_many_ranks_show_the_product() -> None:
    with pytest.raises(InputError, match=r"tp\(8\) \* cp\(1\) \* dp\(8\) \* pp\(1\) = 64 ranks .* 32 devices"):
        axis_groups(cluster(), tp=8, dp=8)


def test_bad_orders_name_every_problem() -> None:
    with pytest.raises(InputError) as caught:
        axis_groups(cluster(), order=("tp", "tp", "dpp"))
    assert len(caught.value.problems) == 5
    assert "Did you mean pp?" in str(caught.value)


def test_rank_file(tmp_path: Path) -> None:
    path = tmp_path / "ranks"
    path.write_text("3\n1  # second\n\n0\n2\n")
    devices = read_rank_file(path, 4)
    assert devices == (3, 1, 0, 2)
    groups = axis_groups(cluster(), tp=2, dp=2)
    assert placed_ranks(groups["dp"], devices, 1) == (1, 2)


def test_rank_file_problems_are_located(tmp_path: Path) -> None:
    path = tmp_path / "ranks"
    path.write_text("0\nx\n0\n9\n")
    with pytest.raises(InputError) as caught:
        read_rank_file(path, 4)
    text = str(caught.value)
    assert ":2: 'x' is no device number" in text
    assert ":3: device 0 is used already, in line 1" in text
    assert ":4: device 9 is outside 0..3" in text
