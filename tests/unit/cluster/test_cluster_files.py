"""Listed links and unequal nodes in cluster files, from the file to the time of a collective."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.catalog import load_cluster
from simulator.cluster.graph import cluster_graph
from simulator.cluster.members import slowest_link
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.errors import InputError

HEAD = """
title = "Four devices in a ring with one thin link"
device = "a100-sxm-80gb"
devices_per_node = 4
nodes = 1
source = "made for this test"

[[tiers]]
name = "board"
kind = "nvlink"
topology = "mesh"
size = 4
bandwidth = "50 GB/s"
latency = "1 us"
source = "made for this test"
"""


def link(one: str, other: str, bandwidth: str) -> str:
    return f'[[links]]\none = "{one}"\nother = "{other}"\nbandwidth = "{bandwidth}"\nlatency = "1 us"\n'


def test_links_of_a_file_are_the_graph(tmp_path: Path) -> None:
    path = tmp_path / "ring.toml"
    rates = ["50 GB/s", "50 GB/s", "50 GB/s", "5 GB/s"]
    path.write_text(HEAD + "".join(link(str(i), str((i + 1) % 4), rate) for i, rate in enumerate(rates)))
    cluster = load_cluster(str(path))
    graph = cluster_graph(cluster)
    assert sorted(map(sorted, graph.edges)) == [[0, 1], [0, 3], [1, 2], [2, 3]]
    even = tmp_path / "even.toml"
    even.write_text(HEAD + "".join(link(str(i), str((i + 1) % 4), "50 GB/s") for i in range(4)))
    thin, full = (collective_time_s(c, "all_gather", 1e9, Group(4, 1)) for c in (cluster, load_cluster(str(even))))
    assert thin / full == pytest.approx(10.0, rel=0.05)


def test_bad_links_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "ring.toml"
    path.write_text(HEAD + link("0", "0", "50 GB/s") + link("1", "7", "50 GB/s") + link("1", "sw", "1 GB/s"))
    with pytest.raises(InputError) as caught:
        load_cluster(str(path))
    text = str(caught.value)
    assert "0 is joined to itself" in text
    assert "device 7 is outside 0..3" in text
    assert "2 of 4 devices have no link; the first is 2" in text


def test_listed_links_do_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "ring.toml"
    path.write_text(HEAD + "".join(link(str(i), "sw", "50 GB/s") for i in range(4)))
    with pytest.raises(InputError, match="only its own number of nodes"):
        load_cluster(str(path), nodes=2)


def test_groups_of_nodes_have_their_own_bandwidth(tmp_path: Path) -> None:
    groups = """
[[node_groups]]
device = "h100-sxm-80gb"
nodes = 3

[[node_groups]]
device = "a100-sxm-80gb"
nodes = 1
bandwidth = "300 GB/s"

"""
    tiers = HEAD[HEAD.index("[[tiers]]") :].replace("50 GB/s", "450 GB/s").replace('"mesh"', '"switch"')
    network = (
        '[[tiers]]\nname = "ib"\nkind = "infiniband"\ntopology = "fat-tree"\n'
        'bandwidth = "400 Gb/s"\nlatency = "1 us"\nsource = "x"\n'
    )
    path = tmp_path / "mixed.toml"
    path.write_text('title = "Mixed"\ndevices_per_node = 4\nsource = "made for this test"\n' + groups + tiers + network)
    cluster = load_cluster(str(path))
    slow = slowest_link(cluster)
    assert (slow.node, slow.device.generation, slow.tier.bandwidth_bytes_per_s) == (3, "ampere", 300e9)
