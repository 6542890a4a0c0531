"""`shardwise network` and the roofline on unequal nodes: groups by slowest member, kernels of the slowest rank."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import simulator as sim
from simulator.cli.app import app
from simulator.cluster.degrade import off_rail, with_collisions
from simulator.cluster.graph import cluster_graph
from simulator.cluster.members import plain_if_equal, uniform
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.cluster.survey import times_by_member
from simulator.report.plot_roofline import layer_kernels, roofline_picture
from simulator.spec.hardware import Cluster

MIXED = (
    'title = "Two H100 and two A100 nodes"\ndevices_per_node = 8\nsource = "made for this test"\n'
    '[[node_groups]]\ndevice = "h100-sxm-80gb"\nnodes = 2\n'
    '[[node_groups]]\ndevice = "a100-sxm-80gb"\nnodes = 2\nbandwidth = "300 GB/s"\nnetwork_bandwidth = "200 Gb/s"\n'
    '[[tiers]]\nname = "nvswitch"\nkind = "nvswitch"\ntopology = "switch"\nsize = 8\n'
    'bandwidth = "450 GB/s"\nlatency = "1 us"\nsource = "made for this test"\n'
    '[[tiers]]\nname = "ib"\nkind = "infiniband"\ntopology = "fat-tree"\nrail_optimised = true\n'
    'bandwidth = "400 Gb/s"\nlatency = "1 us"\nsource = "made for this test"\n'
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.toml"
    path.write_text(MIXED, encoding="utf-8")
    return path


def alone(cluster: Cluster, node: int) -> Cluster:
    """The cluster with every node like this one."""
    return replace(cluster, device=cluster.node_devices[node], node_devices=(), node_tiers=(), node_uplinks=(),
                   tiers=(cluster.node_tiers[node], cluster.node_uplinks[node]))  # fmt: skip


def test_a_file_says_what_each_group_of_nodes_has(file: Path) -> None:
    cluster = sim.load_cluster(str(file))
    assert [tier.bandwidth_bytes_per_s for tier in cluster.node_tiers] == [450e9, 450e9, 300e9, 300e9]
    assert [tier.bandwidth_bytes_per_s for tier in cluster.node_uplinks] == [50e9, 50e9, 25e9, 25e9]
    prices = [sim.load_cluster(name).device.price_usd_per_hour for name in ("dgx-h100", "dgx-a100")]
    assert cluster.price_usd_per_device_hour == (sum(prices) / 2 if all(prices) else 0.0)
    slow = uniform(cluster)
    assert [tier.bandwidth_bytes_per_s for tier in slow.tiers] == [300e9, 25e9]
    assert plain_if_equal(slow) is slow


def test_the_graph_has_each_nodes_own_links(file: Path) -> None:
    graph = cluster_graph(sim.load_cluster(str(file)))
    for device, inside, card in ((0, 450e9, 50e9), (15, 450e9, 50e9), (16, 300e9, 25e9), (31, 300e9, 25e9)):
        assert graph.edges[device, f"nvswitch.{device // 8}"]["bandwidth_bytes_per_s"] == inside
        assert graph.edges[device, f"nic{device}"]["bandwidth_bytes_per_s"] == card


@pytest.mark.parametrize("kind", ["all_reduce", "all_to_all", "send"])
def test_groups_take_what_equal_clusters_of_their_members_take(file: Path, kind: str) -> None:
    """Groups of 8 lie within nodes and of 16 within like pairs, each as on a cluster of its own kind; others as the
    slower."""
    cluster = sim.load_cluster(str(file))
    fast, slow = alone(cluster, 0), alone(cluster, 2)
    for group in (Group(8, 1), Group(16, 1)):
        found = times_by_member(cluster, kind, 1e8, group)
        expected = [float(collective_time_s(c, kind, 1e8, group)) for c in (fast, slow)]
        assert sorted(found.values()) == sorted(expected)
    (label,) = times_by_member(cluster, kind, 1e8, Group(4, 8))
    assert label == "node 2 (a100-sxm-80gb, ib at 25 GB/s)"


def test_the_command_lists_groups_by_their_slowest_member(file: Path) -> None:
    done = CliRunner().invoke(app, ["network", str(file), "--tp", "8", "--pp", "4", "--json"])
    assert done.exit_code == 0, done.output
    axes: dict[str, Any] = {axis["axis"]: axis for axis in json.loads(done.stdout)["axes"]}
    assert list(axes["tp"]["by_member_s"]) == [
        "node 2 (a100-sxm-80gb, nvswitch at 300 GB/s)", "node 0 (h100-sxm-80gb, nvswitch at 450 GB/s)",
    ]  # fmt: skip
    assert axes["tp"]["time_s"] == max(axes["tp"]["by_member_s"].values())
    text = CliRunner().invoke(app, ["network", str(file), "--group", "12", "--bytes", "1 MiB"]).stdout
    assert "h100-sxm-80gb, a100-sxm-80gb" in text
    assert "25 GB/s to 50 GB/s" in text
    assert "Groups by their slowest member" in text


def test_faults_of_the_fabric_reach_every_nodes_cards(file: Path) -> None:
    """The tier of the network cards loses the same share on fast and on slow nodes."""
    cluster = sim.load_cluster(str(file))
    for worse in (with_collisions(cluster, flows_per_device=1, paths=8), off_rail(cluster, 0.5)):
        rates = [tier.bandwidth_bytes_per_s for tier in worse.node_uplinks]
        before = [tier.bandwidth_bytes_per_s for tier in cluster.node_uplinks]
        shares = [rate / old for rate, old in zip(rates, before, strict=True)]
        whole = worse.tiers[1].bandwidth_bytes_per_s / cluster.tiers[1].bandwidth_bytes_per_s
        assert shares == pytest.approx([whole] * 4)
        assert worse.node_tiers == cluster.node_tiers
    assert with_collisions(cluster, flows_per_device=1, paths=8).node_uplinks[0].bandwidth_bytes_per_s < 50e9


def test_the_roofline_is_that_of_the_slowest_rank(file: Path) -> None:
    cluster, model, run = sim.load_cluster(str(file)), sim.load_model("gpt3-13b"), sim.Run(global_batch=32)
    strategy = sim.Strategy(tp=8, pp=4)
    points = layer_kernels(model, cluster, run, strategy)
    assert points == layer_kernels(model, alone(cluster, 2), run, strategy)
    assert points != layer_kernels(model, alone(cluster, 0), run, strategy)
    title = roofline_picture(model, cluster, run, strategy).axes[0].get_title(loc="left")
    assert cluster.node_devices[2].title in title


def test_the_report_names_every_device_and_both_rates(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", "gpt3-1.3b", str(file), "--tp", "8", "--pp", "4", "--global-batch", "32",
                                    "-o", str(out)])  # fmt: skip
    assert done.exit_code == 0, done.output
    text = out.read_text(encoding="utf-8")
    for device in {device.title for device in sim.load_cluster(str(file)).node_devices}:
        assert f"{device}: " in text
    assert "300 GB/s to 450 GB/s per device" in text
