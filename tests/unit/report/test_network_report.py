"""`shardwise network`: what it says, in text and JSON, is what the network's functions give; its pictures show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from simulator.catalog import load_cluster
from simulator.cli.app import app
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group, axis_groups
from simulator.cluster.survey import survey_axes
from simulator.report.plot_network import drains_of, network_figure, sketch_of


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["network", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def document(*words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(*words, "--json"))
    return answer


def test_times_are_the_networks() -> None:
    answer = document("dgx-h100", "--nodes", "4", "--collective", "all_gather", "--bytes", "1 MiB", "--bytes", "1 GiB")
    cluster = load_cluster("dgx-h100", nodes=4)
    found = answer["collective"]
    assert (found["group"], found["stride"], answer["axes"]) == (32, 1, [])
    for row in found["rows"]:
        time_s = collective_time_s(cluster, "all_gather", row["size_bytes"], Group(32, 1))
        assert row["time_s"] == time_s
        assert row["bus_bytes_per_s"] == pytest.approx(row["size_bytes"] * 31 / 32 / time_s)
        assert min(row["by_algorithm_s"].values()) == row["by_algorithm_s"][row["algorithm"]] == time_s


def test_an_algorithm_can_be_forced() -> None:
    words = ("dgx-h100", "--nodes", "4", "--bytes", "8 MiB", "--algorithm")
    ring, tree = (document(*words, name)["collective"]["rows"][0] for name in ("ring", "tree"))
    assert ring["algorithm"] == "ring"
    assert ring["time_s"] != tree["time_s"]
    done = CliRunner().invoke(app, ["network", *words, "rings"])
    assert done.exit_code != 0


def test_text_names_the_bottleneck_and_the_tiers() -> None:
    text = run("llama3-24k-roce", "--collective", "all_to_all", "--group", "16", "--stride", "1024", "--bytes", "1 GiB")
    assert "bottleneck  a unit of 3072 devices into aggregation" in text
    assert "7:1" in text
    assert "pairwise" in text
    assert run("llama3-24k-roce", "--collective", "send", "--group", "1").count("One rank sends nothing.") == 1


def test_axes_say_what_they_cross_and_share() -> None:
    """Llama 3's order: tp in the node, pp within the pod, dp over the aggregation."""
    words = ("llama3-24k-roce", "--tp", "8", "--pp", "16", "--order", "tp-cp-ep-pp-dp")
    axes = {axis["axis"]: axis for axis in document(*words)["axes"]}
    assert {name: axis["tier"] for name, axis in axes.items()} == {"tp": "nvswitch", "dp": "aggregation", "pp": "pod"}
    assert axes["dp"]["size"] == 128
    assert axes["tp"]["up_bytes_per_s"] is None
    assert axes["dp"]["sharing"]["rack"] == 8
    assert axes["pp"]["first_group"] == [8 * stage for stage in range(16)]
    text = run(*words)
    assert "dp = 128: what tp, cp and pp leave of 16384 devices." in text


def test_expert_axes_fold_and_are_checked() -> None:
    axes = {axis["axis"] for axis in document("dgx-h100", "--nodes", "8", "--tp", "2", "--ep", "8")["axes"]}
    assert axes == {"tp", "dp", "ep", "edp"}
    done = CliRunner().invoke(app, ["network", "dgx-h100", "--nodes", "8", "--tp", "2", "--ep", "7"])
    assert "does not divide tp * cp * dp = 64" in str(done.output) + str(done.exception)


def test_faults_cost_and_are_said() -> None:
    """Collisions slow the spine, which 64 ranks under one leaf do not use until traffic leaves its rail."""
    words = ("superpod-h100", "--collective", "all_to_all", "--bytes", "1 GiB")
    hash_, rail = ("--ecmp-paths", "16"), ("--off-rail", "0.5")
    healthy, hashed = (document(*words, *extra) for extra in ((), hash_))
    assert _time_s(hashed) > 1.2 * _time_s(healthy)
    assert "slows spine" in hashed["notes"][0]
    near = (*words, "--group", "64")
    healthy, hashed, both = (document(*near, *extra) for extra in ((), hash_, (*hash_, *rail)))
    assert _time_s(hashed) == _time_s(healthy)
    assert _time_s(both) > 1.3 * _time_s(healthy)
    assert "50% of the traffic leaves its rail." in both["notes"]


def _time_s(answer: dict[str, Any]) -> float:
    return float(answer["collective"]["rows"][0]["time_s"])


def test_a_group_beyond_the_cluster_is_refused() -> None:
    done = CliRunner().invoke(app, ["network", "dgx-h100", "--nodes", "2", "--group", "8", "--stride", "4"])
    assert "reaches device 28 of 16" in str(done.output) + str(done.exception)


@pytest.mark.parametrize(
    ("name", "nodes", "degrees"),
    [("llama3-24k-roce", 2048, {"tp": 8, "dp": 128, "pp": 16}), ("tpu-v3-pod", 4, {"tp": 4, "dp": 4})],
)
def test_pictures_colour_each_axis_where_it_goes(name: str, nodes: int, degrees: dict[str, int]) -> None:
    """One panel for the topology and one per axis; every load has links that show it, the idle ones stay grey."""
    cluster = load_cluster(name, nodes=nodes)
    groups = axis_groups(cluster, **degrees)
    axes = survey_axes(cluster, {axis: groups[axis] for axis in degrees}, 2.0**28)
    sketch = sketch_of(cluster)
    keys = {wire.key for wire in sketch.wires}
    for axis in axes:
        drains = drains_of(cluster, axis)
        assert set(drains) <= keys
        assert max(drains.values()) == max(load.drain_s for load in axis.loads)
    figure = network_figure(cluster, axes)
    drawn = [place for place in figure.axes if place.lines]
    assert len(drawn) == 1 + len(axes)
    for place, axis in zip(drawn[1:], axes, strict=True):
        busy = set(drains_of(cluster, axis))
        thick = [line.get_linewidth() > 2 for line in place.lines]
        assert thick == [wire.key in busy for wire in sketch.wires]


def test_a_plot_is_written_and_is_the_same_each_time(tmp_path: Path) -> None:
    words = ("tpu-v3-pod", "--nodes", "4", "--tp", "4")
    for name in ("one.svg", "two.svg"):
        run(*words, "--plot", str(tmp_path / name))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    done = CliRunner().invoke(app, ["network", *words, "--plot", str(tmp_path / "three.gif")])
    assert "no kind of picture" in str(done.output) + str(done.exception)


def test_a_listed_graph_names_its_busiest_cable_and_is_drawn(tmp_path: Path) -> None:
    """Four devices in a ring of cables, one of them thin."""
    path = tmp_path / "ring.toml"
    links = "".join(
        f'[[links]]\none = "{i}"\nother = "{(i + 1) % 4}"\nbandwidth = "{rate} GB/s"\n'
        for i, rate in enumerate((50, 50, 5, 50))
    )
    path.write_text(
        'title = "Ring"\ndevice = "a100-sxm-80gb"\ndevices_per_node = 4\nnodes = 1\nsource = "made for this test"\n'
        '[[tiers]]\nname = "board"\nkind = "nvlink"\ntopology = "mesh"\nsize = 4\nbandwidth = "50 GB/s"\n'
        f'latency = "1 us"\nsource = "made for this test"\n{links}'
    )
    found = document(str(path), "--collective", "all_gather", "--bytes", "1 GiB")["collective"]
    assert found["bottleneck"]["link"] in ("the cable from 2 to 3", "the cable from 3 to 2")
    assert found["bottleneck"]["drain_s"] * 2**30 == pytest.approx(2**30 * 3 / 4 / 5e9)
    assert found["rows"][0]["algorithm"] == "ring"
    figure = network_figure(load_cluster(str(path)), ())
    assert len(figure.axes[0].lines) == 4


def test_faults_reach_the_estimate() -> None:
    """The same options on a whole step: a pipeline over a spine with collisions takes longer, tensor groups do not."""
    words = ["estimate", "gpt3-13b", "superpod-h100", "--nodes", "64", "--tp", "8", "--pp", "2", "--global-batch",
             "512", "--json"]  # fmt: skip
    answers = []
    for extra in ([], ["--ecmp-paths", "16"]):
        done = CliRunner().invoke(app, [*words, *extra])
        assert done.exit_code == 0, done.output
        answers.append(json.loads(done.stdout))
    healthy, hashed = answers
    assert hashed["step_time_s"] > healthy["step_time_s"]
    assert hashed["time"]["tp"] == healthy["time"]["tp"]
    assert "slows spine" in hashed["notes"][1]
