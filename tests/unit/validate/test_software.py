"""Published system names find their profile, and every profile says where its values come from."""

from __future__ import annotations

import re

import pytest

from simulator import catalog
from simulator.spec.run import OPTIMIZERS, PRECISIONS
from simulator.spec.strategy import RECOMPUTE
from simulator.validate.software import framework_for, said_of, year_of
from tests.unit.validate.support import row

PROFILES = {name: catalog.load_framework(name) for name in catalog.names("frameworks")}


@pytest.mark.parametrize(
    ("system", "year", "expected"),
    [
        ("Megatron-LM (PTD-P)", 2021, "megatron-lm-2021"),
        ("Megatron-LM", 2020, "megatron-lm-2021"),
        ("Megatron-LM", 2022, "megatron-lm-2022"),
        ("Megatron-LM", 2024, "megatron-core"),
        ("Megatron-LM (Oct 2021, untied embedding)", 2021, "megatron-lm-2021"),
        ("Megatron-LM v1.1.5 + DeepSpeed ZeRO-2", 2021, "deepspeed"),
        ("Megatron-LM 2.4 + DeepSpeed 3D", 2021, "megatron-deepspeed"),
        ("Megatron-LM 23e00ed0 + TE 2.11 (no overlap)", 2025, "simumax-megatron"),
        ("Megatron-DeepSpeed (PyTorch 2.0.1)", 2023, "megatron-deepspeed"),
        ("Megatron-DeepSpeed (BF16 optimizer, fp32 grad accumulation)", 2022, "megatron-deepspeed-bf16"),
        ("HF Trainer + DeepSpeed", 2021, "hf-deepspeed"),
        ("Megatron-LM v1.1.5 + DeepSpeed ZeRO-3 (TP only)", 2021, "megatron-deepspeed-zero3"),
        ("Megatron-Core v0.16 dev (full optimization stack)", 2025, "megatron-core-moe"),
        ("Megatron-Core main(1e057005); dispatcher A2A", 2025, "megatron-core-moe"),
        ("NeMo 24.07", 2024, "nemo"),
        ("NeMo (v25.04.01)", 2025, "nemo"),
        ("NeMo Framework / NeMo Megatron", 2022, "nemo-megatron-2022"),
        ("NeMo Framework 23.07, with LDDL", 2023, "nemo-megatron-2022"),
        ("NeMo AutoModel (PyTorch FSDP2/DTensor)", 2025, "nemo-automodel"),
        ("Megatron-Bridge (26.04 NeMo Container)", 2026, "megatron-bridge"),
        ("AA-Scaling (Aleph Alpha), Megatron-style 3D parallel + ZeRO-1", 2023, "aa-scaling"),
        ("llm-foundry / Composer (PyTorch FSDP)", 2023, "llm-foundry-2023"),
        ("llm-foundry / Composer (PyTorch FSDP)", 2025, "llm-foundry"),
        ("PyTorch FSDP (fms-fsdp)", 2024, "torch-fsdp"),
        ("PyTorch FSDP (fms-fsdp) + torch.compile", 2024, "torch-fsdp-compiled"),
        ("DeepLearningExamples PyTorch", 2021, "dle-pytorch-2020"),
        ("DeepLearningExamples PyTorch", 2022, "dle-pytorch"),
        ("DeepLearningExamples TensorFlow2", 2021, "dle-tensorflow"),
        ("DeepLearningExamples PaddlePaddle", 2023, "dle-paddle"),
        ("Alpa (auto_sharding)", 2022, "alpa"),
        ("Alpa/Parax (zero_2)", 2021, "alpa"),
        ("InternEvo (Hybrid ZeRO)", 2024, "internevo"),
        ("Zero Bubble (Megatron-LM fork)", 2024, "zero-bubble"),
        ("MaxText", 2024, "maxtext"),
        ("Mesh-TensorFlow", 2021, "mesh-tensorflow"),
        ("GSPMD / Lingvo", 2021, "gspmd"),
        ("GLaM (GSPMD)", 2021, "gspmd"),
        ("GShard (XLA SPMD)", 2020, "gspmd"),
        ("Lingvo", 2021, "gspmd"),
        ("unheard of", 2024, None),
    ],
)
def test_each_published_name_means_one_profile(system: str, year: int, expected: str | None) -> None:
    assert framework_for(system, year, PROFILES) == expected


def test_a_note_can_name_a_variant_of_the_software() -> None:
    system = "AA-Scaling (Aleph Alpha), Megatron-style"
    note = "gated; kernel column also encodes the fused RMSNorm kernel"
    assert framework_for(system, 2023, PROFILES, note) == "aa-scaling-fused-norm"
    assert framework_for(system, 2023, PROFILES, "gated") == "aa-scaling"


@pytest.mark.parametrize(
    ("release", "device", "precision", "model", "expected"),
    [
        ("26.06", "gb300", "mxfp8", "DeepSeekV3", "megatron-bridge-graphs"),
        ("26.08", "gb200", "mxfp8", "DeepSeekV3", "megatron-bridge-graphs-gb200"),
        ("26.06.01", "gb200", "mxfp8", "Qwen3_30B_a3B", "megatron-bridge-graphs"),
        ("26.06", "b200-sxm-180gb", "mxfp8", "DeepSeekV3", "megatron-bridge"),
        ("26.06", "b300-sxm-288gb", "mxfp8", "GPT OSS 120B", "megatron-bridge"),
        ("26.04.01", "gb300", "mxfp8", "DeepSeekV3", "megatron-bridge"),
        ("26.06", "gb300", "mxfp8", "Kimi_K2", "megatron-bridge"),
        ("26.06", "gb300", "mxfp8", "LLAMA3_70B", "megatron-bridge"),
        ("26.04", "h100-sxm-80gb", "fp8", "Qwen3_30B_a3B", "megatron-bridge-eager"),
        ("26.04", "h100-sxm-80gb", "fp8", "Qwen3_235B_a22B", "megatron-bridge-alltoall-overlap"),
        ("26.04", "h100-sxm-80gb", "bf16", "GPT OSS 120B", "megatron-bridge-alltoall"),
        ("26.04", "gb200", "bf16", "GPT OSS 120B", "megatron-bridge-alltoall-overlap"),
    ],
)
def test_recipes_of_one_release_differ_by_device_precision_and_model(
    release: str, device: str, precision: str, model: str, expected: str
) -> None:
    run = row(device=device, precision=precision, model=model, notes="force-balanced")
    assert said_of(run) == f"{device}; {precision}; {model}; force-balanced"
    assert framework_for(f"Megatron-Bridge ({release} NeMo Container)", 2025, PROFILES, said_of(run)) == expected


@pytest.mark.parametrize(("model", "expected"), [("MoE L8 h1024 E8", "alpa-moe"), ("GPT L8 h2048", "alpa")])
def test_alpas_mixtures_have_an_optimizer_of_their_own(model: str, expected: str) -> None:
    said = said_of(row(device="v100-sxm2-16gb", precision="fp16", model=model, notes=""))
    assert framework_for("Alpa/Parax (zero_2)", 2021, PROFILES, said) == expected
    assert framework_for("Alpa (auto_sharding)", 2022, PROFILES, said) == expected


def test_the_year_is_the_sources_or_the_devices() -> None:
    assert year_of(row(source="arXiv:2205.05198 Tables 3 and 5", device="a100-sxm-80gb")) == 2022
    assert year_of(row(source="github:x", device="v100-sxm2-32gb")) == 2021
    assert year_of(row(source="github:x", device="gb200")) == 2025


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_value_of_a_profile_has_its_source(name: str) -> None:
    told = {"name", "title", "systems", "since", "defaults", "sources"}
    given = set(catalog.catalog_table("frameworks", name)) - told
    sources = PROFILES[name].sources
    assert given <= set(sources)
    assert all(len(text) > 3 for text in sources.values())
    assert "dropout" in sources  # None is a value too: the model's own


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_defaults_are_words_that_runs_and_strategies_know(name: str) -> None:
    defaults = PROFILES[name].defaults
    assert defaults["precision"] in PRECISIONS
    assert defaults["optimizer"] in OPTIMIZERS
    assert defaults.get("recompute", "none") in RECOMPUTE
    assert defaults["zero"] in (0, 1, 2, 3)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_names_of_systems_are_expressions(name: str) -> None:
    assert PROFILES[name].systems
    for pattern in PROFILES[name].systems:
        re.compile(pattern)
