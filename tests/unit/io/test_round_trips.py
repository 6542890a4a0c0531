"""What is exported reads back as the same strategy and run, for drawn strategies of every format."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simulator.catalog import load_framework, load_model
from simulator.errors import InputError
from simulator.io import bridge, deepspeed, megatron, torchtitan
from simulator.io.formats import MODULES, dump_as, load_as, recognise, run_toml, strategy_toml
from simulator.io.imported import exportable
from simulator.io.mcore import MODULES as RECOMPUTED
from simulator.plan.menus import PP_INSIDE_DP
from simulator.spec.run import Run
from simulator.spec.strategy import AXES, Strategy

DENSE, MIXTURE = load_model("llama3.1-8b"), load_model("qwen3-30b-a3b")
LAYERS = {DENSE.name: 32, MIXTURE.name: 48}
DEGREE = st.sampled_from([1, 2, 4, 8])


@st.composite
def splits(draw: st.DrawFn, layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage, uneven, or () for an even split; uneven where they do not divide."""
    if layers % stages == 0 and draw(st.booleans()):
        return ()
    cuts = sorted(draw(st.lists(st.integers(0, layers), min_size=stages - 1, max_size=stages - 1)))
    counts = tuple(after - before for before, after in zip([0, *cuts], [*cuts, layers], strict=True))
    return () if len(set(counts)) == 1 else counts


@st.composite
def common(draw: st.DrawFn, *, mixture: bool) -> dict[str, Any]:
    """Degrees that every framework has."""
    tp, pp, dp, cp = (draw(DEGREE) for _ in range(4))
    found: dict[str, Any] = {"tp": tp, "pp": pp, "dp": dp, "cp": cp, "micro_batch": draw(st.integers(1, 4))}
    if mixture:
        found["ep"] = draw(st.sampled_from([e for e in (1, 2, 4, 8) if (tp * cp * dp) % e == 0]))
    return found


@st.composite
def of_mcore(draw: st.DrawFn) -> tuple[Strategy, Run, Any]:
    """A strategy that Megatron-Core runs."""
    model = draw(st.sampled_from([DENSE, MIXTURE]))
    found = draw(common(mixture=model.mixture))
    if model.mixture:
        found["etp"] = draw(st.sampled_from([1, found["tp"]]))
    if found["pp"] > 1 and draw(st.booleans()):
        found |= {"vp": draw(st.integers(2, 3)), "schedule": "interleaved"}
        found["group_size"] = draw(st.sampled_from([0, found["pp"] + 1, 2 * found["pp"]]))
    stages = found["pp"] * found.get("vp", 1)
    if stages > 1:
        found["layers_per_stage"] = draw(splits(LAYERS[model.name], stages))
    found["zero"] = draw(st.integers(0, 3))
    if found["zero"] < 2:
        found["order"] = draw(st.sampled_from([AXES, PP_INSIDE_DP]))
    if found["zero"] == 1 and found["dp"] > 2:
        found["shard_group"] = draw(st.sampled_from([0, found["dp"] // 2]))
    found["sequence_parallel"] = found["tp"] == 1 or draw(st.booleans())
    found["context_kind"] = draw(st.sampled_from(["ring", "all-gather", "ulysses"])) if found["cp"] > 1 else "ring"
    found["recompute"] = draw(st.sampled_from(["none", "selective", "full", "modules"]))
    if found["recompute"] == "full":
        found["recompute_layers"] = draw(st.integers(0, 3))
    if found["recompute"] == "modules":
        modules = draw(st.lists(st.sampled_from(RECOMPUTED), min_size=1, unique=True))
        found["recompute_modules"] = tuple(modules) if modules != ["core_attn"] else ("mlp",)
    overlaps = ("overlap_grad_reduce", "overlap_param_gather", "overlap_tp", "overlap_moe")
    found |= {name: draw(st.booleans()) for name in overlaps}
    return Strategy(**found), draw(runs(("bf16", "fp16"))), model


@st.composite
def runs(draw: st.DrawFn, precisions: tuple[str, ...]) -> Run:
    dropout, capacity = draw(st.sampled_from([None, 0.0, 0.1])), draw(st.sampled_from([None, 1.25]))
    length, precision = draw(st.sampled_from([2048, 8192])), draw(st.sampled_from(precisions))
    return Run(global_batch=1536, seq_len=length, precision=precision, dropout=dropout, capacity_factor=capacity)


@st.composite
def of_torchtitan(draw: st.DrawFn) -> tuple[Strategy, Run, Any]:
    """A strategy that torchtitan runs."""
    model = draw(st.sampled_from([DENSE, MIXTURE]))
    found = draw(common(mixture=model.mixture))
    if model.mixture:
        found["etp"] = found["tp"] if found["ep"] == 1 else draw(st.sampled_from([1, found["tp"]]))
    if found["pp"] > 1:
        found["schedule"] = draw(st.sampled_from(sorted(torchtitan.SCHEDULES)))
        found["vp"] = 1 if found["schedule"] in torchtitan.ONE_STAGE else 2
        found["layers_per_stage"] = draw(splits(LAYERS[model.name], found["pp"] * found["vp"]))
    found["context_kind"] = draw(st.sampled_from(["ring", "all-gather"])) if found["cp"] > 1 else "ring"
    if found["dp"] > 1 or found["cp"] > 1:
        found["zero"] = draw(st.sampled_from([3] if found["pp"] == 1 else [2, 3]))
        if found["dp"] > 2:
            found["shard_group"] = draw(st.sampled_from([0, 2]))
        found["reshard_after_forward"] = found["pp"] > 1 or draw(st.booleans())
    if found["cp"] == 1 and draw(st.booleans()):
        found |= {"zero": 0, "shard_group": 0, "reshard_after_forward": True}
    if found.get("zero") == 3:
        found["offload"] = draw(st.sampled_from(["none", "parameters"]))
    found["recompute"] = draw(st.sampled_from(["none", "full"]))
    found["overlap_tp"] = found["tp"] > 1 and draw(st.booleans())
    found["overlap_moe"] = found.get("schedule") == "dualpipev" and draw(st.booleans())
    strategy = Strategy(overlap_grad_reduce=True, overlap_param_gather=True, **found)
    batch = strategy.dp * strategy.micro_batch * 8
    return strategy, Run(global_batch=batch, seq_len=4096, precision=draw(st.sampled_from(["bf16", "fp32"]))), model


@st.composite
def of_deepspeed(draw: st.DrawFn) -> tuple[Strategy, Run, Any]:
    """A strategy that DeepSpeed's file says."""
    tp, dp, cp = draw(DEGREE), draw(DEGREE), draw(DEGREE)
    zero = draw(st.integers(0, 3))
    strategy = Strategy(
        tp=tp, dp=dp, cp=cp, zero=zero, micro_batch=draw(st.integers(1, 4)), sequence_parallel=tp == 1,
        context_kind="ulysses" if cp > 1 else "ring", overlap_grad_reduce=draw(st.booleans()),
        shard_group=draw(st.sampled_from([0, 2])) if zero == 3 and dp > 1 else 0,
        offload=draw(st.sampled_from(["none", "optimizer", "parameters"])) if zero == 3 else "none",
    )  # fmt: skip
    run = Run(global_batch=dp * strategy.micro_batch * draw(st.integers(1, 9)), seq_len=4096,
              precision=draw(st.sampled_from(deepspeed.PRECISIONS)),
              optimizer=draw(st.sampled_from(["adam", "adamw", "lamb", "sgd"])))  # fmt: skip
    return strategy, run, DENSE


def read_back(form: str, strategy: Strategy, run: Run, model: Any) -> None:
    text = dump_as(form, strategy, run, model)
    found = load_as(form, text, path="file", devices=strategy.devices)
    assert found.strategy == strategy
    # DeepSpeed's file has no sequence length; every other field of the run that differs from its default comes back.
    length = {"seq_len": run.seq_len} if form == "deepspeed" else {}
    assert replace(Run(**{**found.run, **length}), framework=run.framework) == run
    assert recognise(text, "file") == form
    again = tomllib.loads(strategy_toml(found.strategy))
    assert Strategy(**{name: tuple(v) if isinstance(v, list) else v for name, v in again.items()}) == strategy
    assert tomllib.loads(run_toml(found.run)) == found.run


@given(of_mcore())
def test_megatron_flags_read_back(case: tuple[Strategy, Run, Any]) -> None:
    read_back("megatron", *case)


@given(of_mcore())
def test_megatron_bridge_reads_back_and_is_yaml_to_a_yaml_reader(case: tuple[Strategy, Run, Any]) -> None:
    read_back("megatron-bridge", *case)
    table = yaml.safe_load(bridge.dump(*case))
    assert table["model"]["tensor_model_parallel_size"] == case[0].tp
    assert table["train"] == {"micro_batch_size": case[0].micro_batch, "global_batch_size": 1536}
    assert table["model"].get("recompute_modules", []) == list(
        case[0].recompute_modules or (["core_attn"] if case[0].recompute == "selective" else [])
    )


@given(of_torchtitan())
def test_torchtitan_reads_back_and_its_degrees_make_the_devices(case: tuple[Strategy, Run, Any]) -> None:
    read_back("torchtitan", *case)
    degrees = tomllib.loads(torchtitan.dump(*case))["parallelism"]
    product = degrees["data_parallel_replicate_degree"] * degrees["data_parallel_shard_degree"]
    product *= degrees["tensor_parallel_degree"] * degrees["pipeline_parallel_degree"]
    assert product * degrees.get("context_parallel_degree", 1) == case[0].devices
    if case[0].pp > 1:
        named = [name for part in degrees["module_fqns_per_model_part"] for name in part]
        layers = [f"layers.{index}" for index in range(LAYERS[case[2].name])]
        assert named == ["tok_embeddings", *layers, "norm", "output"]


@given(of_deepspeed())
def test_deepspeed_reads_back_and_its_batches_multiply(case: tuple[Strategy, Run, Any]) -> None:
    read_back("deepspeed", *case)
    said = json.loads(deepspeed.dump(*case))
    each = said["train_micro_batch_size_per_gpu"] * said["gradient_accumulation_steps"]
    assert said["train_batch_size"] == case[0].dp * each


@pytest.mark.parametrize(
    ("form", "first"),
    [
        ("megatron", "# Megatron-LM @ d98e8a6"),
        ("megatron-bridge", "# Megatron-Bridge @ 067f987"),
        ("torchtitan", "# torchtitan 0.2.2"),
        ("deepspeed", '  "_version": "DeepSpeed @ edaa722",'),
    ],
)
def test_the_first_line_names_the_version(form: str, first: str) -> None:
    text = dump_as(form, Strategy(dp=8, zero=3), Run(global_batch=64, seq_len=2048), DENSE)
    assert text.splitlines()[1 if form == "deepspeed" else 0] == first


@pytest.mark.parametrize("form", MODULES)
def test_what_a_framework_cannot_say_is_refused_with_every_reason(form: str) -> None:
    odd = Strategy(pp=2, dp=2, schedule="v-half", vp=2, order=("dp", "tp", "cp", "ep", "pp"), offload_inputs=True,
                   recompute="full", recompute_layers=3)  # fmt: skip
    with pytest.raises(InputError) as refused:
        dump_as(form, odd, Run(global_batch=64, seq_len=2048, precision="tf32", optimizer="adafactor"), DENSE)
    places = {problem.where for problem in refused.value.problems}
    assert places >= {"schedule", "order", "offload_inputs", "precision", "optimizer"}


def test_what_an_estimate_takes_from_elsewhere_is_said_in_an_export() -> None:
    model, framework = load_model("llama3.1-8b"), load_framework("megatron-core")
    run, strategy = exportable(model, Run(global_batch=60), Strategy(pp=5, dp=2), framework)
    assert run.seq_len == 8192
    assert strategy.layers_per_stage == (6, 7, 7, 6, 6)
    assert strategy.overlap_grad_reduce is framework.overlap_grad_reduce
    flags = megatron.dump(strategy, run, model).splitlines()
    assert "--pipeline-model-parallel-layout 'Etttttt|ttttttt|ttttttt|tttttt|ttttttL'" in flags


def test_schedules_are_called_as_torch_calls_them() -> None:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    one = {name for name, word in torchtitan.SCHEDULES.items()
           if issubclass(schedules.get_schedule_class(word), schedules.PipelineScheduleSingle)}  # fmt: skip
    assert one == set(torchtitan.ONE_STAGE)
