"""A fleet by hand: what two pods under an oversubscribed aggregation leave to each of their jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.fleet import FleetView, fleet, read_fleet

SMALL = {"model": "gpt3-2.7b", "global_batch": 1536, "seq_len": 512, "micro_batch": 1}
CLUSTER = "llama3-24k-roce"
"""Pods of 384 nodes of eight, 1:7 oversubscribed between pods."""


def job(name: str, nodes: int, **more: object) -> dict[str, object]:
    return {"name": name, "cluster": CLUSTER, "nodes": nodes, **SMALL, **more}


@pytest.fixture(scope="module")
def two() -> FleetView:
    """Two jobs of half a pod each on two pods."""
    return fleet(CLUSTER, 768, [job("a", 192), job("b", 192)])


def test_within_a_pod_nobody_takes_anything(two: FleetView) -> None:
    for kind in ("packed", "in-order"):
        assert [view.placement_ratio for view in two.placements[kind]] == [1.0, 1.0]
        assert [view.contention_ratio for view in two.placements[kind]] == [1.0, 1.0]
        assert all(view.worst_step_time_s == view.step_time_s for view in two.placements[kind])
    assert two.best in {"packed", "in-order"}
    assert two.idle_nodes == 384


def test_spread_over_two_pods_each_has_its_share_of_the_up_link(two: FleetView) -> None:
    """A pod's up-link carries 3072 / 7 = 439 devices' worth. Each job has 96 nodes = 768 devices in a pod: alone they
    share 439, so 1.75 times as long; together 1,536 share 439, so each waits twice as long again.
    """
    for view in two.placements["spread"]:
        assert view.axis == "dp"
        assert view.placement_ratio == pytest.approx(768 / (3072 / 7), rel=1e-9)
        assert view.contention_ratio == pytest.approx(2.0, rel=1e-9)
        assert view.worst_step_time_s > view.step_time_s


def test_every_node_belongs_to_one_job(two: FleetView) -> None:
    for views in two.placements.values():
        nodes = [node for view in views for node in view.nodes]
        assert len(nodes) == len(set(nodes)) == 384
        assert max(nodes) < 768


def test_packed_puts_the_largest_first() -> None:
    view = fleet("dgx-a100", 16, [job("small", 2, cluster="dgx-a100"), job("large", 8, cluster="dgx-a100")])
    small, large = view.placements["packed"]
    assert (large.nodes, small.nodes) == (tuple(range(8)), (8, 9))
    assert view.placements["in-order"][0].nodes == (0, 1)


def test_a_job_inside_a_node_shares_no_fabric() -> None:
    view = fleet("dgx-a100", 2, [job("one", 1, cluster="dgx-a100", global_batch=8)])
    assert view.placements["spread"][0].axis == ""
    assert view.placements["spread"][0].contention_ratio == 1.0


def test_the_document_is_json(two: FleetView) -> None:
    assert json.loads(json.dumps(two.to_dict(), allow_nan=False))["best"] == two.best


def test_the_example_reads(root: Path) -> None:
    cluster, nodes, jobs = read_fleet(root / "examples" / "fleet_pods.toml")
    assert (cluster, nodes, [each["name"] for each in jobs]) == ("llama3-24k-roce", 768, ["405B", "70B", "8B"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cluster: a name is missing"),
        ('cluster = "dgx-a100"\n', "[[jobs]]"),
        ('cluster = "dgx-a100"\njobs = 3\n', "[[jobs]]"),
        ('cluster = "dgx-a100"\ncolour = 1\n[[jobs]]\nnodes = 1\n', "colour: unknown key"),
        ('cluster = "dgx-a100"\nnodes = "two"\n[[jobs]]\nnodes = 1\n', "nodes: is no whole number"),
        ('cluster = "dgx-a100"\n[[jobs]]\nmodel = "x"\n', "how many does the job need"),
        ('cluster = "dgx-a100"\n[[jobs]]\nnodes = 1\ncluster = "y"\n', "no cluster of its own"),
        ('cluster = "dgx-a100"\n[[jobs]]\nnodes = 1\nmodel = "x"\nglobal_bach = 2\n', "Did you mean global_batch?"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refusal:
        read_fleet(file)
    assert said in str(refusal.value)
    assert "fleet.toml:" in str(refusal.value)


def test_jobs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="the jobs need 18 nodes, dgx-a100 has 16"):
        fleet("dgx-a100", 16, [job("a", 9), job("b", 9)])
    with pytest.raises(InputError, match="a: "):
        fleet("dgx-a100", 16, [job("a", 2, cluster="dgx-a100", tp=7)] * 2)
