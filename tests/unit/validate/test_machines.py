"""The machine that a published source ran on: its own network, whatever is usual elsewhere."""

from __future__ import annotations

import pytest

from simulator import catalog
from simulator.cluster.network import bus_bandwidth_bytes_per_s, collective_time_s
from simulator.cluster.placement import Group
from simulator.validate.facts import CatalogFacts
from simulator.validate.machines import machine_of
from tests.unit.validate.support import row

BIGSCIENCE = "github:bigscience-workshop/bigscience@9e64edec2ad1:experiments/gpt2.md"


@pytest.mark.parametrize(
    ("source", "device", "machine"),
    [
        (BIGSCIENCE, "a100-sxm-80gb", "jean-zay-a100"),
        (BIGSCIENCE, "v100-sxm2-16gb", "jean-zay-v100"),
        (BIGSCIENCE, "h100-sxm-80gb", ""),
        ("arXiv:2104.04473", "a100-sxm-80gb", ""),
    ],
)
def test_a_source_that_names_its_machine(source: str, device: str, machine: str):
    assert machine_of(row(source=source, device=device)) == machine


def test_jean_zay_gives_what_its_all_reduce_bench_measured():
    """all_reduce_bench-32gb-n4.txt: 4 GB over 4 x 4 V100 in 708.1 ms, a bus bandwidth of 10.59 GB/s."""
    cluster = CatalogFacts().cluster("v100-sxm2-32gb", 16, 4, None, "jean-zay-v100")
    seconds = collective_time_s(cluster, "all_reduce", 4e9, Group(16), algorithm="ring")
    assert seconds == pytest.approx(0.7081, rel=0.03)
    assert bus_bandwidth_bytes_per_s("all_reduce", 4e9, 16, seconds) == pytest.approx(10.59e9, rel=0.03)


def test_a_run_elsewhere_on_such_nodes_keeps_the_usual_share():
    elsewhere = catalog.cluster_for("v100-sxm2-32gb", 16, 4)
    assert elsewhere.name == "jean-zay-v100"
    assert elsewhere.tiers[-1].usable_fraction == 0.0


def test_the_machine_overrules_a_network_column_that_its_nodes_do_not_have():
    """Eight devices share four links of 100 Gb/s: 50 Gb/s each, not the 100 of one link."""
    cluster = CatalogFacts().cluster("a100-sxm-80gb", 384, 8, 12.5e9, "jean-zay-a100")
    assert cluster.tiers[-1].bandwidth_bytes_per_s == 6.25e9
