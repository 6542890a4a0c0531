"""Replaced fields arrive where they should, and nowhere else."""

from __future__ import annotations

import pytest

from simulator import catalog
from simulator.errors import InputError
from simulator.sweep.evaluate import evaluate_point
from simulator.sweep.what_if import changes_of, cluster_with, framework_with, model_with

BASE = {"model": "gpt3-13b", "cluster": "dgx-a100", "nodes": 2, "global_batch": 32, "tp": 8, "recompute": "full"}


def test_nothing_replaced_is_the_catalogues_own() -> None:
    assert cluster_with("dgx-a100", 4, (), (), ()) == catalog.load_cluster("dgx-a100", nodes=4)
    assert model_with("gpt3-13b", ()) is catalog.load_model("gpt3-13b")


def test_x1_changes_no_number() -> None:
    one = (("tiers.nvswitch.bandwidth", "x1"),)
    changed = cluster_with("dgx-a100", 4, one, (("memory_bandwidth", "x1"),), ())
    known = catalog.load_cluster("dgx-a100", nodes=4)
    assert changed.tiers == known.tiers
    assert changed.device.memory_bandwidth_bytes_per_s == known.device.memory_bandwidth_bytes_per_s
    assert changed.device.kernels == known.device.kernels


def test_a_tier_is_named_or_numbered() -> None:
    known = catalog.load_cluster("dgx-a100", nodes=4)
    for path in ("tiers.nvswitch.bandwidth", "tiers.0.bandwidth"):
        changed = cluster_with("dgx-a100", 4, ((path, "x2"),), (), ())
        assert changed.tiers[0].bandwidth_bytes_per_s == 2 * known.tiers[0].bandwidth_bytes_per_s
        assert changed.tiers[1:] == known.tiers[1:]


def test_a_device_field_and_a_new_one() -> None:
    changed = cluster_with("dgx-a100", 1, (), (("peak.bf16", "624 TFLOP/s"), ("price", "1.5 USD/h")), ())
    assert changed.device.peak_flops_per_s["bf16"] == 624e12
    assert changed.device.peak_flops_per_s["fp32"] == 19.5e12
    assert changed.price_usd_per_device_hour == 1.5


def test_models_and_frameworks() -> None:
    changed = model_with("gpt3-13b", (("dims.seq_len", 1024),))
    assert (changed.seq_len, changed.hidden) == (1024, catalog.load_model("gpt3-13b").hidden)
    assert framework_with("megatron-core", (("overlap_tp", True),)).overlap_tp is True


def test_the_catalogue_itself_is_not_touched() -> None:
    before = repr(catalog.catalog_table("clusters", "dgx-a100"))
    cluster_with("dgx-a100", 2, (("tiers.nvswitch.bandwidth", "x3"),), (), ())
    assert repr(catalog.catalog_table("clusters", "dgx-a100")) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("tiers.nvlink.bandwidth", "x2"), "no nvlink among nvswitch, infiniband"),
        (("tiers.nvswitch.bandwith", "1 GB/s"), "bandwith"),
        (("tiers.nvswitch.oversubscription", "x2"), "no value to multiply"),
        (("tiers.nvswitch.bandwidth", "fast"), "is not a quantity"),
        (("tiers.nvswitch.bandwidth", -3), "has no unit"),
        (("title", "x2"), "cannot be multiplied"),
        (("title.more", 2), "is no field"),
        (("rail_optimised.deep.er", 2), "no rail_optimised among"),
        (("tiers", "x2"), "cannot be multiplied"),
    ],
)
def test_what_cannot_be_replaced_is_refused(change: tuple[str, object], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        cluster_with("dgx-a100", 2, (change,), (), ())
    assert said in str(refusal.value)


def test_a_point_with_faster_links_is_quicker_and_says_so() -> None:
    plain = evaluate_point(BASE)
    quick = evaluate_point({**BASE, "cluster.tiers.nvswitch.bandwidth": "x4"})
    assert plain["status"] == quick["status"] == "answered"
    assert quick["step_time_s"] < plain["step_time_s"]
    assert quick["time_gemm_s"] == plain["time_gemm_s"]


def test_a_refused_point_is_a_row_with_its_reason() -> None:
    row = evaluate_point({**BASE, "tp": 7})
    assert row["status"] == "refused"
    assert "tp" in row["message"]
    assert evaluate_point({**BASE, "model": "gpt3-175"})["message"].endswith("Did you mean gpt3-175b?")


def test_money_follows_from_price_tokens_and_speed() -> None:
    row = evaluate_point({**BASE, "tokens": "1B", "price": "3 USD/h"})
    assert row["usd_per_million_tokens"] == pytest.approx(1e6 * 16 * 3.0 / 3600.0 / row["tokens_per_s"])
    assert row["usd"] == pytest.approx(3.0 * row["device_hours"])
    assert row["device_hours"] == pytest.approx(16 * 24 * row["days"])


def test_changes_are_sorted_out_by_file() -> None:
    point = {"tp": 1, "device.memory": "1 GiB", "cluster.tiers.0.latency": "1 us", "device.peak.bf16": "x2"}
    assert changes_of(point, "device") == (("memory", "1 GiB"), ("peak.bf16", "x2"))
    assert changes_of(point, "model") == ()
