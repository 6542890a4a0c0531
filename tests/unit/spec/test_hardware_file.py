"""Device, cluster and framework files: what is wrong is said completely, at its line, with the nearest fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from simulator import catalog
from simulator.errors import InputError
from simulator.spec.cluster_fill import filled
from simulator.spec.framework_file import FrameworkFile, read_framework
from simulator.spec.hardware_file import read_cluster_file, read_device, read_kernels
from simulator.spec.reading import parse_document, read_document
from simulator.spec.run import Framework

BAD = Path(__file__).parents[1] / "bad_files"
READERS: dict[str, Callable[..., object]] = {
    "devices": lambda document: read_device(document, {}),
    "clusters": read_cluster_file,
    "frameworks": read_framework,
    "toml": lambda document: document,
}
CASES = [(kind, file.stem) for kind in READERS for file in sorted((BAD / kind).glob("*.toml"))]


def complaint(kind: str, name: str) -> str:
    """Everything that reading the file complains about."""
    shown = "megatron-core.toml" if kind == "frameworks" else f"{name}.toml"  # A profile's name is its file's.
    with pytest.raises(InputError) as caught:
        READERS[kind](read_document(BAD / kind / f"{name}.toml", shown))
    return str(caught.value)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_bad_files_are_answered_word_for_word(kind: str, name: str) -> None:
    """The messages, reviewed by hand, stand beside the files."""
    assert complaint(kind, name) + "\n" == (BAD / kind / f"{name}.txt").read_text(encoding="utf-8")


def test_a_profile_says_what_a_framework_is() -> None:
    """The keys of a file are the fields of `Framework`, one for one, so that neither grows alone."""
    assert set(FrameworkFile.model_fields) == {field.name for field in fields(Framework)}


def test_most_complaints_name_a_line() -> None:
    """At least 95 of 100 lines say file:line."""
    lines = [line for kind, name in CASES for line in complaint(kind, name).splitlines()]
    located = [line for line in lines if line.split(":")[1].strip().isdigit()]
    assert len(CASES) >= 50
    assert len(located) >= 0.95 * len(lines)


def test_every_shipped_device_and_cluster_reads() -> None:
    """The catalogue itself is sound, and every device names a cluster that uses a device of it."""
    for name in catalog.names("devices"):
        device = catalog.load_device(name)
        assert device.memory_bytes > 1e9
        assert {"memory", "memory_bandwidth", "peak"} <= set(device.sources)
        assert catalog.cluster_for(name, 1).device is device
    for name in catalog.names("clusters"):
        cluster = catalog.load_cluster(name)
        assert cluster.tiers[-1].size == cluster.devices
        assert all(tier.sources["tier"] for tier in cluster.tiers)


@pytest.mark.parametrize(
    ("name", "clock_hz", "flops_per_clock"),
    [
        ("a100-sxm-80gb", 1410e6, 256 * 2 * 432),
        ("h100-sxm-80gb", 1830e6, 512 * 2 * 528),
        ("mi300x", 2100e6, 256 * 2 * 1216),
        ("mi355x", 2400e6, 512 * 2 * 1024),
        ("gaudi3", 1600e6, 65536 * 2 * 8),
    ],
)
def test_peaks_are_clock_times_width(name: str, clock_hz: float, flops_per_clock: int) -> None:
    """bf16 peaks agree with clock * FLOP per clock (facts_hardware, section 1) to the printed digits."""
    assert catalog.load_device(name).peak_flops_per_s["bf16"] == pytest.approx(clock_hz * flops_per_clock, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "bisection_bytes_per_s"), [("tpu-v3-pod", 6.4e12), ("tpu-v4-pod", 24e12), ("tpu-v5e-pod", 1.6e12)]
)
def test_torus_bisection_is_the_published_one(name: str, bisection_bytes_per_s: float) -> None:
    """Links across the middle of the longest dim, both wraps: 2 * chips / length * link rate (Google's pod figures).

    Google counts one direction for v3 and v5e and both for v4, rounded; hence a factor of 2 is allowed, no more.
    """
    tier = catalog.load_cluster(name).tiers[0]
    link_bytes_per_s = tier.bandwidth_bytes_per_s / tier.channels
    ours = 2 * tier.size / max(tier.shape) * link_bytes_per_s
    assert bisection_bytes_per_s / ours == pytest.approx(1.0, rel=0.15) or bisection_bytes_per_s / ours == (
        pytest.approx(2.0, rel=0.15)
    )


def test_slices_are_cubic_and_wrap_by_the_rule() -> None:
    """Cloud TPU slices: v5e-64 is 8x8 without wrap, v5e-256 16x16 with; v4-128 cubes 4x4x8; v4 2x2x4 does not wrap."""
    shapes = {
        ("tpu-v5e-pod", 8): ((8, 8), (False, False)),
        ("tpu-v5e-pod", 16): ((8, 16), (False, True)),
        ("tpu-v5e-pod", 32): ((16, 16), (True, True)),
        ("tpu-v4-pod", 32): ((4, 4, 8), (True,) * 3),
        ("tpu-v4-pod", 4): ((2, 2, 4), (False,) * 3),
        ("tpu-v5p-pod", 1536): ((16, 16, 24), (True,) * 3),
    }
    for (name, nodes), expected in shapes.items():
        tier = catalog.load_cluster(name, nodes).tiers[0]
        assert (tier.shape, tier.wrap) == expected


def test_racks_fill_evenly_and_networks_do_not() -> None:
    """128 devices take 64 of each NVL72 rack; 16,384 devices leave Meta's sixth pod part-filled."""
    assert [tier.size for tier in catalog.load_cluster("gb200-nvl72", 32).tiers] == [64, 128]
    assert [tier.size for tier in catalog.load_cluster("gb200-nvl72", 36).tiers] == [72, 144]
    assert [tier.size for tier in catalog.load_cluster("gb200-nvl72", 1).tiers] == [4]
    assert [tier.size for tier in catalog.load_cluster("llama3-24k-roce").tiers] == [8, 16, 3072, 16384]
    assert catalog.load_cluster("llama3-24k-roce").tiers[-1].oversubscription == 7.0


def test_clusters_of_several_devices() -> None:
    """Node groups give each node its device; another number of nodes is refused."""
    document = parse_document(
        'title = "mixed"\ndevices_per_node = 8\nsource = "test"\n'
        'node_groups = [{ device = "h100-sxm-80gb", nodes = 2 }, { device = "a100-sxm-80gb", nodes = 1 }]\n'
        '[[tiers]]\nname = "node"\nkind = "nvswitch"\ntopology = "switch"\nsize = 8\nbandwidth = "300 GB/s"\n'
        'latency = "1 us"\nsource = "test"\n'
        '[[tiers]]\nname = "net"\nkind = "roce"\ntopology = "fat-tree"\nbandwidth = "200 Gb/s"\nlatency = "1 us"\n'
        'source = "test"\n',
        "mixed.toml",
    )
    devices = {name: catalog.load_device(name) for name in ("h100-sxm-80gb", "a100-sxm-80gb")}
    cluster = filled(read_cluster_file(document), "mixed", devices)
    assert [device.name for device in cluster.node_devices] == ["h100-sxm-80gb"] * 2 + ["a100-sxm-80gb"]
    with pytest.raises(InputError, match="lists the devices of its 3 nodes one by one, so 4 nodes are not described"):
        filled(read_cluster_file(document), "mixed", devices, nodes=4)


def test_calibrations_attach_to_their_generation() -> None:
    """A100's constants are its own, A100-40GB inherits them, V100 has stated defaults."""
    kinds = {name: catalog.load_device(name).kernels.provenance for name in
             ("a100-sxm-80gb", "a100-sxm-40gb", "h200-sxm-141gb", "v100-sxm2-32gb")}  # fmt: skip
    assert list(kinds.values()) == ["fitted", "inherited", "inherited", "assumed"]


def test_bad_calibrations_are_refused() -> None:
    """A calibration says what it was fitted on, in numbers."""
    document = parse_document(
        'device = "x"\nprovenance = "fitted"\nsource = "s"\n[constants.pointwise]\na = "b"\n', "c.toml"
    )
    with pytest.raises(InputError) as caught:
        read_kernels(document)
    assert str(caught.value) == (
        'c.toml:1: fitted_on: missing key.\nc.toml:5: constants.pointwise.a: must be a number, got "b".'
    )
