"""Rows become strategies: arithmetic first, then the framework's defaults, each recorded; or a reason."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.spec.model import ModelSpec
from simulator.validate.configure import Configuration, configure, rest_on_last_stage
from simulator.validate.models import Skip, model_for, named_model, resized
from tests.unit.validate.support import World, named, row


def configured(world: World | None = None, **cells: Any) -> Configuration:
    found = configure(row(**cells), world or World())
    assert isinstance(found, Configuration), found
    return found


def skipped(world: World | None = None, **cells: Any) -> Skip:
    found = configure(row(**cells), world or World())
    assert isinstance(found, Skip), found
    return found


def test_what_a_row_states_is_taken_as_it_is() -> None:
    found = configured(zero=1, sp=True, recompute="full", precision="fp16", schedule="1f1b", pp=2, dp=2, vp=1)
    ((strategy,),) = found.rungs
    assert (strategy.tp, strategy.pp, strategy.dp, strategy.zero, strategy.schedule) == (2, 2, 2, 1, "1f1b")
    assert strategy.sequence_parallel
    assert strategy.recompute == "full"
    assert (found.run.precision, found.run.attention, found.run.global_batch) == ("fp16", "fused", 16)
    assert found.defaults == ()


@pytest.mark.parametrize(
    ("cells", "degrees"),
    [
        ({"dp": None}, (2, 4)),
        ({"tp": None}, (2, 4)),
        ({"tp": None, "dp": 8}, (1, 8)),
        ({"dp": 2, "ep": 2, "experts": 4, "topk": 1}, (2, 4)),
    ],
)
def test_a_missing_degree_follows_from_the_devices(cells: dict[str, Any], degrees: tuple[int, int]) -> None:
    strategy = configured(**cells).rungs[0][0]
    assert (strategy.tp, strategy.dp) == degrees


def test_framework_defaults_fill_what_is_left_and_are_recorded() -> None:
    defaults = {"zero": 1, "sequence_parallel": True, "precision": "fp16", "vocab": 777, "recompute": "full"}
    world = World(defaults=defaults)
    found = configured(world, precision=None, vocab=None, recompute=None, attention=None)
    ((strategy,),) = found.rungs
    assert (strategy.zero, strategy.sequence_parallel, strategy.recompute) == (1, True, "full")
    assert found.run.precision == "fp16"
    assert found.models[0].embedding.vocab == 777
    assert set(found.defaults) == {
        "vocab = 777 (framework)", "precision = fp16 (framework)", "attention = fused (framework)",
        "zero = 1 (framework)", "recompute = full (framework)", "sp = 1 (framework)",
    }  # fmt: skip


def test_open_choices_become_candidates() -> None:
    found = configured(tp=None, dp=None, micro_batch=None)
    assert {(s.tp, s.dp) for s in found.rungs[0]} == {(1, 8), (2, 4), (4, 2), (8, 1)}
    assert {s.micro_batch for s in found.rungs[0] if s.tp == 8} == {1, 2, 4, 8, 16}
    assert any("fastest of" in text for text in found.defaults)


def test_a_framework_with_a_default_accumulation_leaves_no_choice() -> None:
    found = configured(World(defaults={"micro_batches": 1}), micro_batch=None)
    assert [s.micro_batch for s in found.rungs[0]] == [4]


@pytest.mark.parametrize(
    ("cells", "schedule", "vp", "split"),
    [
        ({"pp": 4, "dp": 1, "tp": 2, "layers": 8}, "1f1b", 1, ()),
        ({"pp": 2, "dp": 2, "vp": 2}, "interleaved", 2, ()),
        ({"pp": 2, "dp": 2, "vp": 2, "schedule": "1f1b"}, "interleaved", 2, ()),
        ({"pp": 4, "dp": 1, "layers": 8, "schedule": "interleaved"}, "interleaved", 2, ()),
        ({"pp": 4, "dp": 1, "layers": 10, "schedule": "zb-h1"}, "zb-h1", 1, (2, 3, 3, 2)),
        ({"pp": 4, "dp": 1, "layers": 10, "schedule": "interleaved"}, "interleaved", 3, (0, *[1] * 10, 0)),
        ({"pp": 4, "dp": 1, "layers": 8, "schedule": "zbv"}, "zbv", 2, ()),
        ({"vp": 3}, "1f1b", 1, ()),
    ],
)
def test_pipelines(cells: dict[str, Any], schedule: str, vp: int, split: tuple[int, ...]) -> None:
    strategy = configured(**cells).rungs[0][0]
    assert (strategy.schedule, strategy.vp, strategy.layers_per_stage) == (schedule, vp, split)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"recompute": "selective"}, ("selective", (), 0)),
        ({"recompute": "other"}, ("full", (), 0)),
        (
            {"recompute": "modules", "recompute_detail": "selective: norm, act"},
            ("modules", ("moe_act", "layernorm"), 0),
        ),
    ],
)
def test_recompute_words(cells: dict[str, Any], expected: tuple[str, tuple[str, ...], int]) -> None:
    strategy = configured(**cells).rungs[0][0]
    assert (strategy.recompute, strategy.recompute_modules, strategy.recompute_layers) == expected


@pytest.mark.parametrize(("recompute", "host"), [("full", True), ("none", False), ("selective", False)])
def test_software_that_keeps_recomputed_inputs_on_the_host(recompute: str, host: bool) -> None:
    found = configured(World(defaults={"offload_inputs": True}), recompute=recompute)
    assert found.rungs[0][0].offload_inputs is host
    assert ("offload_inputs = True (framework)" in found.defaults) is host
    assert not configured(recompute="full").rungs[0][0].offload_inputs


@pytest.mark.parametrize(("arch", "sp"), [("decoder", True), ("encoder", True), ("encoder-decoder", False)])
def test_sequences_of_encoder_decoders_are_not_split_by_default(arch: str, sp: bool) -> None:
    world = World(defaults={"sequence_parallel": True})
    assert configured(world, arch=arch, tp=2, sp=None).rungs[0][0].sequence_parallel is sp
    assert configured(world, arch=arch, tp=2, sp=True).rungs[0][0].sequence_parallel


def test_unstated_interleaving_and_expert_parallelism_where_the_framework_has_them() -> None:
    piped = configured(World(defaults={"vp": 0}), pp=2, dp=2, layers=8).rungs[0]
    assert [(s.vp, s.schedule) for s in piped] == [
        (1, "1f1b"), (2, "interleaved"), (4, "interleaved"),
    ]  # fmt: skip
    assert len(configured(World(defaults={"vp": 0}), pp=2, dp=2, layers=8, vp=1).rungs[0]) == 1
    assert configured(World(defaults={"ep": 0}), experts=12, topk=2).rungs[0][0].ep == 4


def test_unstated_recompute_is_a_ladder_and_stated_is_not() -> None:
    rungs = configured(recompute=None).rungs
    assert [(rung[0].recompute, rung[0].recompute_layers) for rung in rungs] == [
        ("none", 0), ("modules", 0), ("full", 1), ("full", 2), ("modules", 0), ("full", 3), ("full", 0),
    ]  # fmt: skip
    assert len(configured(recompute="none").rungs) == 1


def test_a_loader_that_bins_by_length_shortens_the_sequences_of_an_encoder() -> None:
    """512 tokens of which half are padding, in 8 bins: 256 and half a bin of 64."""
    world = World(defaults={"sequence_bins": 8})
    assert configured(world, arch="encoder", seq_len=512).run.seq_len == 288
    assert configured(world, seq_len=512).run.seq_len == 512
    assert configured(arch="encoder", seq_len=512, system="Soft, with LDDL").run.seq_len == 288


def test_selective_can_mean_whole_layers() -> None:
    strategy = configured(World(defaults={"selective_layers_fraction": 0.5}), recompute="selective").rungs[0][0]
    assert (strategy.recompute, strategy.recompute_layers) == ("full", 2)


@pytest.mark.parametrize(("etp", "ep", "expected"), [(0, 4, 2), (1, 4, 1), (0, 8, 1)])
def test_expert_tensor_degree_follows_the_framework_where_folding_allows(etp: int, ep: int, expected: int) -> None:
    strategy = configured(World(defaults={"etp": etp}), experts=8, topk=2, ep=ep).rungs[0][0]
    assert strategy.etp == expected


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"device": None}, "device not stated"),
        ({"global_batch": None}, "global_batch not stated"),
        ({"device": "gpu-9000"}, "no cluster of device gpu-9000"),
        ({"train_kind": "finetune"}, "training kind finetune is not modelled"),
        ({"layers": None}, "model dimensions missing"),
        ({"dp": 8}, "the row contradicts itself"),
        ({"micro_batch": 3}, "global_batch is no multiple of dp * micro_batch"),
        ({"pp": 2, "dp": 2, "schedule": "other"}, "schedule other"),
        ({"pp": 3, "dp": None}, "tp * cp * pp does not divide the devices"),
        ({"recompute": "modules", "recompute_detail": "selective: everything"}, "recompute module everything"),
    ],
)
def test_what_cannot_be_expressed_is_skipped_with_its_reason(cells: dict[str, Any], reason: str) -> None:
    assert skipped(**cells).reason == reason


def test_notes_change_what_they_say() -> None:
    found = configured(notes="LAMB optimizer; cp comm a2a; EP overlap on; zero1=2")
    ((strategy,),) = found.rungs
    assert found.run.optimizer == "lamb"
    assert configured(system="Soft + bitsandbytes 8-bit Adam").run.optimizer == "adam-bf16"
    assert (strategy.context_kind, strategy.overlap_moe, strategy.shard_group) == ("ulysses", True, 2)


def test_an_unknown_system_falls_back_and_says_so() -> None:
    """Who splits layers is taken for Megatron-Core, who shards parameters for FSDP, the rest for plain PyTorch."""
    found = configured(system="Unheard-of")
    assert "framework = megatron-core (no profile names 'Unheard-of')" in found.defaults
    assert configured(system="Unheard-of", tp=1, dp=8).framework.name == "pytorch"
    assert configured(system="Unheard-of", tp=1, dp=8, zero=3).framework.name == "torch-fsdp"


def built(**cells: Any) -> ModelSpec:
    found = model_for(row(**cells), {}, 1000)
    assert not isinstance(found, Skip)
    return found[0]


def test_plain_models_of_each_kind() -> None:
    llama = built(gated=True, kv_heads=2)
    assert (llama.norm, llama.head.tied, llama.embedding.learned_positions) == ("rmsnorm", False, 0)
    gpt = built()
    assert (gpt.norm, gpt.head.tied, gpt.embedding.learned_positions) == ("layernorm", True, 128)
    bert = built(arch="encoder")
    assert (bert.head.transform, bert.embedding.token_types, bert.architecture) == (True, 2, "encoder")
    t5 = built(arch="encoder-decoder", layers=6)
    assert [(s.role, s.layers) for s in t5.stacks] == [("encoder", 3), ("decoder", 3)]
    assert t5.stacks[1].layer(0).cross_attention is not None
    every_other = built(experts=4, topk=2, notes="MoE in every other layer")
    assert [every_other.stacks[0].layer(i).experts is not None for i in range(4)] == [False, True, False, True]


def test_encoder_decoder_layers_are_doubled_where_the_size_in_the_name_says_so() -> None:
    """NeMo's T5 3B: 24 layers in each of its two stacks, hidden 2048, feed-forward 5120."""
    cells = {"arch": "encoder-decoder", "hidden": 2048, "heads": 32, "ffn_hidden": 5120, "vocab": 29184, "layers": 24}
    assert built(**cells, model="T5 3B").layers == 48
    assert built(**cells, model="T5").layers == 24
    assert built(**cells | {"layers": 48}, model="T5 3B").layers == 48


def test_a_catalogue_model_needs_equal_dimensions_and_a_like_name() -> None:
    known = [named("gpt-tiny"), named("gpt-wide", hidden=128, ffn_hidden=512)]
    assert named_model(row(), known) is known[0]
    assert named_model(row(model="OPT tiny"), known) is None
    assert named_model(row(ffn_hidden=300), known) is None
    assert named_model(row(model="any", assumed="fields <- MODELS.csv[gpt-tiny]"), known) is known[0]


def test_a_proxy_keeps_the_first_layers_of_the_catalogue_model() -> None:
    found = model_for(row(layers=2), {"gpt-tiny": named("gpt-tiny")}, 1000)
    assert not isinstance(found, Skip)
    assert found[0].layers == 2
    assert "layers = 2 of 4 (row)" in found[1]


def test_resized_stacks_keep_what_leads_and_repeat_the_pattern() -> None:
    dense, sparse = (named("a").stacks[0].layer(0), named("b", experts=2, topk=1).stacks[0].layer(0))
    lead = ((dense, 1), (sparse, 3))
    assert resized(lead, 2) == ((dense, 1), (sparse, 1))
    assert resized(lead, 6) == ((dense, 1), (sparse, 5))
    other = ((dense, 1), (sparse, 1), (dense, 1), (sparse, 1))
    assert resized(other, 6) == (*other, (dense, 1), (sparse, 1))


def test_electra_trains_two_models() -> None:
    generator, discriminator = configured(arch="encoder", hidden=96, heads=6, notes="generator + discriminator").models
    assert (generator.hidden, discriminator.hidden) == (32, 96)
    attention = generator.stacks[0].layer(0).attention
    assert attention is not None
    assert attention.heads == 2
    assert generator.embedding.width == 96


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ({"notes": "full CPU offload"}, "parameters"),
        ({"table": "Zero 3 + Full Offload, line 4", "notes": "optimizer CPU offload"}, "optimizer"),
        ({"notes": "optimizer and parameter CPU offload"}, "parameters"),
        ({"notes": "offload of nothing"}, "none"),
    ],
)
def test_what_rests_in_host_memory_is_read_from_the_notes(cells: dict[str, Any], kind: str) -> None:
    ((strategy,),) = configured(**cells).rungs
    assert strategy.offload == kind


@pytest.mark.parametrize(
    ("layers", "depths", "stages", "split"),
    [
        (61, 1, 8, (8,) * 7 + (5,)),
        (61, 1, 16, (4,) * 15 + (1,)),
        (61, 0, 4, (16, 16, 16, 13)),
        (61, 1, 32, (1, *[2] * 30, 0)),
        (61, 0, 32, ()),
        (60, 1, 4, ()),
        (2, 1, 5, ()),
    ],
)
def test_layers_that_do_not_divide_leave_the_rest_to_the_last_stage(
    layers: int, depths: int, stages: int, split: tuple[int, ...]
) -> None:
    """The layouts that Megatron-Bridge's recipes of DeepSeek-V3 and Kimi K2 list."""
    assert rest_on_last_stage(layers, depths, stages) == split
    assert not split or sum(split) == layers


@pytest.mark.parametrize(("rest", "split"), [(True, (4, 4, 4, 1)), (False, ())])
def test_a_profile_says_how_layers_that_do_not_divide_are_dealt(rest: bool, split: tuple[int, ...]) -> None:
    world = World(defaults={"rest_on_last_stage": rest})
    found = configured(world, layers=13, pp=4, tp=2, dp=1, vp=1)
    assert {strategy.layers_per_stage for rung in found.rungs for strategy in rung} == {split}


@pytest.mark.parametrize(
    ("name", "arch", "vocab", "taken"),
    [("mT5 3B", "encoder-decoder", 250112, "vocab = 250112 (series)"), ("T5 3B", "encoder-decoder", 50257, ""),
     ("BERT 4B", "encoder", 50257, ""), ("mT5 3B", "decoder", 50257, "")],
)  # fmt: skip
def test_an_unstated_vocabulary_is_the_one_of_the_series(name: str, arch: str, vocab: int, taken: str) -> None:
    """Of models of the same kind whose names begin alike, where they agree; else the framework's."""
    models = {
        model.name: model
        for model in (
            named(stem, arch="encoder-decoder", vocab=size)
            for stem, size in (("mt5-small", 250112), ("t5-small", 32128), ("t5-base", 32000))
        )
    }
    found = configured(World(models=models), model=name, arch=arch, vocab=None)
    assert found.models[0].embedding.vocab == vocab
    assert (taken or "vocab = 50257 (framework)") in found.defaults
    assert configured(World(models=models), model=name, arch=arch, vocab=777).models[0].embedding.vocab == 777
