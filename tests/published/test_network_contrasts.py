"""Contrasts that published work reports or argues from, at the level of whole steps: nothing here was tuned to them.

Llama 3 405B on an oversubscribed fabric and on a full fat tree, tensor parallelism inside a node and beyond it, and
Switch Transformer's five partitionings.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from simulator.catalog import load_cluster, load_model
from simulator.cluster.network import collective_time_s
from simulator.estimate import estimate
from simulator.parallel.presets import preset
from simulator.parallel.setting import groups_of
from simulator.result import Estimate
from simulator.spec.hardware import Cluster
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

LLAMA = load_model("llama3.1-405b")
# Llama 3 paper (arXiv:2407.21783) Table 4: GPUs -> TFLOP/s a GPU, sequences of 8,192, 16M tokens a batch, TP 8, PP 16.
TABLE_4 = {8192: 430.0, 16384: 400.0}
PAPER_ORDER = ("tp", "cp", "ep", "pp", "dp")
"""Section 3.3.2: [TP, CP, PP, DP], innermost first."""


def fabric(devices: int, *, full: bool = False) -> Cluster:
    """Meta's RoCE cluster: 1:7 above pods of 3,072, or the same switches without oversubscription."""
    found = load_cluster("llama3-24k-roce", nodes=devices // 8)
    if not full:
        return found
    return replace(found, tiers=tuple(replace(tier, oversubscription=1.0) for tier in found.tiers))


def llama(cluster: Cluster, *, order: tuple[str, ...] = PAPER_ORDER, framework: str = "torchtitan") -> Estimate:
    """Table 4's strategy. Section 3.3.2: interleaved, the first and the last stage one layer short; a layer a stage."""
    split = Strategy(tp=8, pp=16, dp=cluster.devices // 128, vp=8, schedule="interleaved", zero=2, order=order,
                     layers_per_stage=(0, *(1,) * 126, 0))  # fmt: skip
    return estimate(LLAMA, cluster, Run(global_batch=2048, seq_len=8192, framework=framework), split)


@pytest.mark.parametrize("devices", TABLE_4)
def test_llama3_speed(devices: int) -> None:
    """The PyTorch profile, whose software Llama 3's was built on (section 3.3.2), as it stands."""
    rate = llama(fabric(devices)).model_flops_per_s_per_device / 1e12
    assert rate == pytest.approx(TABLE_4[devices], rel=0.10)


@pytest.mark.parametrize("framework", ["torchtitan", "megatron-core"])
def test_llama3_loss_from_twice_the_devices(framework: str) -> None:
    """Twice the devices at the same batch halve the micro-batches: 430 to 400 TFLOP/s, a loss of 7 %."""
    few, many = (llama(fabric(devices), framework=framework).mfu for devices in TABLE_4)
    assert many / few == pytest.approx(TABLE_4[16384] / TABLE_4[8192], rel=0.05)


def test_llama3_order_makes_seven_to_one_as_good_as_a_full_fat_tree() -> None:
    """Section 3.3.2 puts DP outermost as it stands longer latency and is hidden: the thin tier then costs nothing."""
    thin, full = llama(fabric(16384)), llama(fabric(16384, full=True))
    assert full.step_time_s <= thin.step_time_s <= 1.01 * full.step_time_s


def test_pipelines_over_the_thin_tier_cost_what_the_full_fat_tree_saves() -> None:
    """The other order sends every micro-batch of every stage over the aggregation, at a seventh of the rate."""
    order = ("tp", "cp", "ep", "dp", "pp")
    thin, full = (llama(fabric(16384, full=whole), order=order) for whole in (False, True))
    assert thin.step_time_s > 1.03 * full.step_time_s
    assert full.step_time_s == pytest.approx(llama(fabric(16384, full=True)).step_time_s, rel=0.02)
    # All stages of a pipeline lie 1,024 devices apart: all of a pod's members send over its way up at once.
    groups = groups_of(fabric(16384), Strategy(tp=8, pp=16, dp=128, order=order))
    sends = [collective_time_s(fabric(16384, full=whole), "send", 16e6, groups["pp"]) for whole in (False, True)]
    assert 1.5 < sends[0] / sends[1] <= 7.0


MODEL_162B = """
title = "Megatron GPT 162.2B"
family = "Megatron GPT"
[dims]
architecture = "decoder"
hidden = 20480
layers = 32
seq_len = 2048
[norm]
kind = "layernorm"
[attention]
heads = 128
head_dim = 160
qkv_bias = true
out_bias = true
[feed_forward]
hidden = 81920
activation = "gelu"
gated = false
bias = true
[embedding]
vocab = 51200
learned_positions = 2048
[head]
tied = true
[published]
parameters = "162.2B"
exact = true
source = "Narayanan 2021 (arXiv:2104.04473) Figure 13"
[sources]
dims = "Narayanan 2021 (arXiv:2104.04473) section 5.4.1"
attention = "Narayanan 2021 (arXiv:2104.04473) section 5.4.1"
feed_forward = "Megatron-LM: 4 x hidden"
embedding = "GPT-2, padded"
"""


@pytest.mark.parametrize("batch", [32, 128])
def test_tensor_parallelism_beyond_the_node_is_slower(batch: int, tmp_path: Path) -> None:
    """Narayanan 2021 section 5.4.1, Figure 13: 162.2B on 64 A100 (8 DGX), best with tp 8 and pp 8; tp 2 and 4 lose to
    bubbles, tp 16 and 32 to thinner matrices and the network: a wider node would help, and one adapter a node, where
    a DGX has eight, would cost more than half.
    """
    path = tmp_path / "megatron-162b.toml"
    path.write_text(MODEL_162B)
    model = load_model(str(path))
    run = Run(global_batch=batch, seq_len=2048, precision="fp16", framework="megatron-lm-2021")

    def rate(tp: int, cluster: Cluster) -> float:
        return 1 / estimate(model, cluster, run, Strategy(tp=tp, pp=64 // tp, recompute="full")).step_time_s

    dgx = load_cluster("dgx-a100", nodes=8)
    rates = {tp: rate(tp, dgx) for tp in (2, 4, 8, 16, 32)}
    assert max(rates, key=lambda tp: rates[tp]) == 8
    assert rates[8] > rates[16] > 1.1 * rates[32]
    node = replace(dgx.tiers[0], size=32)
    wide = replace(dgx, tiers=(node, *dgx.tiers[1:]), devices_per_node=32, nodes=2)
    assert rate(16, wide) > rates[16]
    thin = replace(dgx, tiers=(dgx.tiers[0], replace(dgx.tiers[1], bandwidth_bytes_per_s=25e9 / 8), *dgx.tiers[2:]))
    assert rate(16, thin) < 0.5 * rate(8, thin)


def test_tp_16_over_two_nodes_is_slower_than_tp_8_in_each() -> None:
    """The same sixteen devices: tp 16 sends every layer's activations over the network, tp 8 the gradients once."""
    model = load_model("megatron-18.4b")
    two = load_cluster("dgx-h100", nodes=2)
    run = Run(global_batch=64, seq_len=2048)
    inside = estimate(model, two, run, Strategy(tp=8, dp=2, zero=1))
    across = estimate(model, two, run, Strategy(tp=16, zero=1))
    assert across.step_time_s > 1.5 * inside.step_time_s
    assert across.time.parts["tp"] > 2 * inside.time.parts["tp"]


SWITCH = {"framework": "mesh-tensorflow", "optimizer": "adafactor"}


def partitioned(model_name: str, nodes: int, batch: int, names: tuple[str, ...]) -> dict[str, Estimate]:
    """Estimates of these partitionings, each in one micro-batch."""
    model, cluster = load_model(model_name), load_cluster("tpu-v3-pod", nodes=nodes)
    found = {}
    for name in names:
        dp = preset(name, model, cluster.devices).dp
        split = preset(name, model, cluster.devices, micro_batch=batch // dp)
        found[name] = estimate(model, cluster, Run(global_batch=batch, **SWITCH), split)
    return found


def test_model_parallelism_buys_memory_with_activations() -> None:
    """Section 5.5: T5-XXL's weights do not fit a core, so it needs model ways, whose all-reduces grow with the batch
    per core; more model ways hold less and send more."""
    dense = partitioned("t5-xxl-switch-baseline", 4, 64, ("data", "model", "model+data"))
    assert not dense["data"].fits
    assert dense["data"].memory.parts["weights"] > dense["model+data"].memory.parts["weights"]
    assert dense["model+data"].memory.parts["weights"] > dense["model"].memory.parts["weights"]
    assert dense["model"].traffic_bytes["tp"] > 3 * dense["model+data"].traffic_bytes["tp"]
    assert "tp" not in dense["data"].traffic_bytes


def test_experts_add_parameters_without_adding_memory_or_much_time() -> None:
    """Sections 2 and 5.4: an expert a core leaves memory and work per core as those of the dense model with data
    parallelism; only the all-to-alls come on top."""
    dense = partitioned("t5-base-switch-baseline", 16, 1024, ("data",))["data"]
    sparse = partitioned("switch-base-64", 16, 1024, ("data", "model+data", "expert+data", "expert+model+data"))
    split = sparse["expert+data"]
    assert split.memory.parts["weights"] < 1.2 * dense.memory.parts["weights"]
    assert split.memory.parts["weights"] < sparse["data"].memory.parts["weights"] / 8
    assert split.step_time_s < 1.6 * dense.step_time_s
    # Of the ways to split one model over the same devices it is the quickest (twelve heads are not split 64 ways).
    assert min(sparse, key=lambda name: sparse[name].step_time_s) == "expert+data"
    assert sparse["model+data"].step_time_s > sparse["expert+model+data"].step_time_s > split.step_time_s


def test_switch_c_fits_without_model_parallelism() -> None:
    """Section 5.6: 1.6T parameters by expert and data parallelism alone, on 1,024 chips (Patterson 2021 Table 4:
    34.4 TFLOP/s a chip), a batch of 2^20 tokens; replicated over data ways it would need terabytes a chip."""
    model, cluster = load_model("switch-c"), load_cluster("tpu-v3-pod")
    batch = 2048
    split = preset("expert+data", model, cluster.devices, micro_batch=batch // cluster.devices)
    answer = estimate(model, cluster, Run(global_batch=batch, **SWITCH), split)
    assert answer.fits
    copied = preset("data", model, cluster.devices, micro_batch=batch // cluster.devices)
    assert not estimate(model, cluster, Run(global_batch=batch, **SWITCH), copied).fits
    assert answer.model_flops_per_s_per_device / 1e12 == pytest.approx(34.4, rel=0.3)
