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


RACKS = """
title = "Two racks of four under two spines, and a store of two"
device = "a100-sxm-80gb"
devices_per_node = 2
nodes = 5
source = "made for this test"

[[parts]]
name = "rack"
copies = 2
devices = 4

[[parts.links]]
one = "0-3"
other = "leaf"
bandwidth = "50 GB/s"
latency = "1 us"

[[links]]
one = "rack*.leaf"
other = "spine[0-1]"
bandwidth = "25 GB/s"

[[links]]
one = "8-9"
other = "spine1"
bandwidth = "10 GB/s"

[[tiers]]
name = "all"
kind = "ethernet"
topology = "leaf-spine"
size = 10
bandwidth = "50 GB/s"
latency = "1 us"
source = "made for this test"
"""


def test_a_graph_is_composed_from_parts(tmp_path: Path) -> None:
    """Eight devices under their leaves, four cables between leaves and spines, two devices on the second spine."""
    path = tmp_path / "racks.toml"
    path.write_text(RACKS)
    cluster = load_cluster(str(path))
    ends = {(link.one, link.other) for link in cluster.links}
    racks = {(str(device), f"rack{device // 4}.leaf") for device in range(8)}
    spines = {(f"rack{rack}.leaf", f"spine{spine}") for rack in range(2) for spine in range(2)}
    assert ends == racks | spines | {("8", "spine1"), ("9", "spine1")}
    assert len(cluster.links) == 14
    # Two pairs from rack to rack share two ways of 25 GB/s each: as if each had one.
    inside = collective_time_s(cluster, "send", 1e9, Group(2, 1))
    assert inside == pytest.approx(1e9 / 10e9, rel=0.1)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"0-3"', '"0-4"', "device 4 is outside the 4 of a rack. Links between parts stand in"),
        ('"rack*.leaf"', '"racks*.leaf"', "racks*.leaf names no vertex. Did you mean rack?"),
        ("copies = 2", "copies = 3", "3 * 4 = 12 devices, but the cluster has 10"),
        ('"8-9"', '"8"', "1 of 10 devices have no link; the first is 9"),
        ('"8-9"', '"9-8"', "9-8 names no vertex"),
        ('"spine[0-1]"', '"spine[0-999999]"', "more than 500,000 links"),
    ],
)
def test_bad_parts_are_located(old: str, new: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "racks.toml"
    path.write_text(RACKS.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_cluster(str(path))
    assert said in str(caught.value)
    assert "racks.toml:" in str(caught.value)


def test_a_full_mesh_is_one_link(tmp_path: Path) -> None:
    path = tmp_path / "mesh.toml"
    path.write_text(HEAD + link("0-3", "0-3", "50 GB/s"))
    pairs = [(one.one, one.other) for one in load_cluster(str(path)).links]
    assert pairs == [(str(a), str(b)) for a in range(4) for b in range(a + 1, 4)]
