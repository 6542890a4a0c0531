"""Published facts of whole training runs: days, device hours, goodput, energy. Nothing here was fitted to them."""

from __future__ import annotations

import pytest

import simulator as sim
from simulator.project.checkpoint import bytes_per_parameter, checkpoint
from simulator.project.energy import MEASURED_WATTS, carbon_kg, energy_kwh
from simulator.project.goodput import DEVICE_MTBF_S, goodput, job_mtbf_s
from simulator.project.training import Project
from simulator.project.training import project as whole_project

MEGATRON = {"framework": "megatron-lm-2021", "precision": "fp16", "optimizer": "adam"}
RECOMPUTED = {"micro_batch": 1, "recompute": "full", "sequence_parallel": False}
GPT3_MWH = 1287.0
"""Patterson 2021 Table 4: 10,000 V100 for 14.8 days at 330 W, PUE 1.10, from 24.6 TFLOP/s measured per device."""


def predicted(model: str, cluster: str, nodes: int, run: sim.Run, tokens: float, **strategy: object) -> Project:
    return whole_project(
        sim.load_model(model), sim.load_cluster(cluster, nodes=nodes), run, sim.Strategy(**strategy), tokens=tokens
    )


def test_days_by_the_formula_of_the_paper() -> None:
    """Narayanan 2021 sec. 5.10, eq. 4: 8 T P / (n X) with the X that its Table 1 measured."""
    rows = ((174.6e9, 300e9, 1024, 140e12, 34), (1008e9, 450e9, 3072, 163e12, 84))
    for parameters, tokens, devices, rate, days in rows:
        assert 8.0 * tokens * parameters / (devices * rate) / 86400.0 == pytest.approx(days, abs=0.6)


def test_gpt_3_takes_34_days_on_1024_a100() -> None:
    """Narayanan 2021 sec. 5.10; the split is that of its Table 1 for this size (tp 8, pp 8), without interleaving."""
    answer = predicted("gpt3-175b", "dgx-a100", 128, sim.Run(global_batch=1536, **MEGATRON), 300e9,
                       tp=8, pp=8, dp=16, **RECOMPUTED)  # fmt: skip
    assert answer.ideal_days == pytest.approx(34.0, rel=0.10)


def test_a_trillion_parameters_take_84_days_on_3072_a100() -> None:
    """Narayanan 2021 sec. 5.10; Table 1's last row: tp 8, pp 64, batch 3072."""
    answer = predicted("megatron-1008b", "dgx-a100", 384, sim.Run(global_batch=3072, **MEGATRON), 450e9,
                       tp=8, pp=64, dp=6, **RECOMPUTED)  # fmt: skip
    assert answer.ideal_days == pytest.approx(84.0, rel=0.10)


def test_deepseek_v3_takes_2_66_million_h800_hours() -> None:
    """DeepSeek-V3 report, Table 1 and sec. 3.2: pp 16, ep 64 over 8 nodes, ZeRO-1, DualPipe, FP8, bf16 moments; norms
    and MLA up-projections are recomputed. DualPipe's own overlap hides its all-to-alls; none is asked for besides.
    """
    run = sim.Run(global_batch=15360, seq_len=4096, precision="fp8", optimizer="adam-bf16",
                  framework="hai-llm")  # fmt: skip
    answer = predicted("deepseek-v3", "hgx-h800", 256, run, 14.8e12, pp=16, dp=128, ep=64, zero=1, schedule="dualpipe",
                       recompute="modules", recompute_modules=("layernorm", "mla_up_proj", "moe_act"))  # fmt: skip
    assert answer.ideal_days * 24 * 2048 == pytest.approx(2.664e6, rel=0.10)


@pytest.mark.parametrize(("framework", "fits"), [("hai-llm", True), ("megatron-core-moe", False)])
def test_deepseek_v3_fits_80_gb_with_its_narrow_activations(framework: str, fits: bool) -> None:
    """DeepSeek-V3 report sec. 3.2 and 3.3.2: no tensor parallelism on 80 GB devices, because norms and up-projections
    are recomputed, inputs of SwiGLU kept in FP8 and those of the linear after attention in E5M6.
    """
    run = sim.Run(global_batch=15360, seq_len=4096, precision="fp8", optimizer="adam-bf16", framework=framework)
    strategy = sim.Strategy(pp=16, dp=128, ep=64, zero=1, schedule="dualpipe", recompute="modules",
                            recompute_modules=("layernorm", "mla_up_proj", "moe_act"))  # fmt: skip
    cluster = sim.load_cluster("hgx-h800", nodes=256)
    assert sim.estimate(sim.load_model("deepseek-v3"), cluster, run, strategy).fits is fits


def test_llama_3_trains_for_more_than_nine_tenths_of_the_time() -> None:
    """Llama 3 paper sec. 3.3.4: over 90 % effective training time on 16,384 H100 with 419 interruptions in 54 days.

    Its storage takes 2 TB/s sustained (sec. 3.3.1); with 14 bytes per parameter a checkpoint is written in seconds.
    Detection and restart are not published: the claim holds for any that take a quarter of an hour together or less.
    """
    run = sim.Run(global_batch=2048)
    size_bytes = 405.85e9 * bytes_per_parameter(run, sim.load_framework("megatron-core"))
    saved = checkpoint(size_bytes, 16_384, storage_bytes_per_s=2e12)
    assert saved.write_s < 4.0
    mtbf_s = job_mtbf_s(DEVICE_MTBF_S["llama3"], 16_384)
    for recovery_s, holds in ((60.0, True), (600.0, True), (840.0, True), (1800.0, False)):
        share = goodput(job_mtbf_s=mtbf_s, save_s=saved.write_s, recovery_s=recovery_s).useful_fraction
        assert (share > 0.90) == holds, recovery_s


def test_checkpoints_weigh_what_is_published() -> None:
    """BLOOM: 2.3 TB, that is 2.3 TiB at 14 bytes for 176.2 billion; Megatron 1T: 13.8 TB (a secondary summary)."""
    each = bytes_per_parameter(sim.Run(global_batch=1), sim.load_framework("megatron-lm-2021"))
    assert each == 14.0
    assert each * 176.247e9 / 2**40 == pytest.approx(2.3, abs=0.06)
    assert each * 1008e9 == pytest.approx(13.8e12, rel=0.03)


@pytest.mark.parametrize(
    ("device_hours", "watts", "pue", "mwh"),
    [
        (1024 * 27 * 24, 245.0, 1.10, 179.0),
        (512 * 20 * 24, 310.0, 1.12, 85.7),
        (10_000 * 14.8 * 24, 330.0, 1.10, 1287.0),
        (1024 * 574, 326.0, 1.11, 213.0),
    ],
    ids=["switch-c", "t5-11b", "gpt3", "glam-280b-tokens"],
)
def test_energy_of_published_hours(device_hours: float, watts: float, pue: float, mwh: float) -> None:
    """Patterson 2021 Table 4; GLaM (Du 2022) sec. 7."""
    assert energy_kwh(device_hours, watts, pue) / 1e3 == pytest.approx(mwh, rel=0.01)


def test_carbon_of_gpt_3() -> None:
    """Patterson 2021 Table 4: 552 t at 0.429 kg per kWh."""
    assert carbon_kg(GPT3_MWH * 1e3) / 1e3 == pytest.approx(552.0, abs=1.0)


def test_glam_takes_about_a_third_of_the_energy_of_gpt_3() -> None:
    """Du 2022 abstract: a third, 456 MWh for 600 billion tokens. Its split in two dimensions: experts over 64 groups,
    each expert and the activations over 16 chips.
    """
    run = sim.Run(global_batch=1024, seq_len=1024, framework="mesh-tensorflow", optimizer="adafactor")
    answer = predicted("glam-64b-64e", "tpu-v4-pod", 256, run, 600e9, tp=16, dp=64, ep=64, etp=16, zero=1,
                       micro_batch=16, recompute="full")  # fmt: skip
    mwh = energy_kwh(answer.ideal_days * 24 * 1024, MEASURED_WATTS["tpu-v4"][0], 1.11) / 1e3
    assert mwh == pytest.approx(456.0, rel=0.25)
    assert mwh / GPT3_MWH == pytest.approx(1.0 / 3.0, abs=0.08)
