"""Files as users have them: what is read, what is listed, and every problem of a bad one at its line."""

from __future__ import annotations

from textwrap import dedent

import pytest

from simulator.errors import InputError
from simulator.io import bridge, deepspeed, mcore, megatron, torchtitan
from simulator.io.formats import load_as, recognise
from simulator.spec.strategy import Strategy

SCRIPT = """
    # pretrain_gpt.py
    --num-layers 96 --hidden-size 12288 \\
    --tensor-model-parallel-size=8 --pipeline-model-parallel-size 8 \\
    --num-layers-per-virtual-pipeline-stage 3 --sequence-parallel
    --micro-batch-size 1 --global-batch-size 1536 --seq-length 2048
    --use-distributed-optimizer --overlap-grad-reduce --bf16 --use-flash-attn
    --lr 6e-5 --min-lr 6e-6 --data-path a b
    --recompute-activations-not-this 3
"""


def problems(load, text: str, **options) -> list[str]:
    with pytest.raises(InputError) as refused:
        load(dedent(text), path="f", **options)
    return [str(problem) for problem in refused.value.problems]


def test_a_script_of_megatron_lm_becomes_a_strategy_and_says_what_it_left() -> None:
    found = megatron.load(dedent(SCRIPT), path="f", devices=1024)
    assert found.strategy == Strategy(
        tp=8, pp=8, dp=16, vp=4, schedule="interleaved", zero=1, overlap_grad_reduce=True, overlap_param_gather=False,
        overlap_tp=False, overlap_moe=False,
    )  # fmt: skip
    assert found.run == {"global_batch": 1536, "framework": "megatron-core", "optimizer": "adamw", "seq_len": 2048,
                         "precision": "bf16", "attention": "fused"}  # fmt: skip
    described, left = found.notes
    assert "hidden-size, num-layers" in described
    assert left.endswith("lr, min-lr, data-path, recompute-activations-not-this.")


def test_every_problem_of_a_bad_script_is_told_at_its_line() -> None:
    bad = """
        --tensor-modal-parallel-size 8
        --pipeline-model-parallel-size two
        --micro-batch-size 1 2
        --seq-length 2048 --cp-comm-type p3p
        --use-torch-fsdp2
        --recompute-granularity full
        --recompute-modules core_attn norm
    """
    modules = "core_attn, mlp, moe, moe_act, layernorm, mla_up_proj, shared_experts"
    fsdp = "changes the cost and is not read: torch's FSDP in place of Megatron's own; zero = 3 says it in a strategy."
    told = problems(megatron.load, bad, devices=8)
    assert told == [
        "f:2: tensor-modal-parallel-size: is unknown. Did you mean tensor-model-parallel-size?",
        "f:3: pipeline-model-parallel-size: needs a whole number of at least 1, not 'two'.",
        "f:4: micro-batch-size: needs a whole number of at least 1, not '1 2'.",
        "f:5: cp-comm-type: 'p3p' is not read. Did you mean p2p?",
        f"f:6: use-torch-fsdp2: {fsdp}",
        "f:7: recompute-granularity: full needs recompute-method, uniform or block.",
        f"f:8: recompute-modules: 'norm' is not modelled. Choose from: {modules}.",
        "global-batch-size is not said: the sequences of a step are unknown.",
    ]


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ("--num-experts 64 --tensor-model-parallel-size 4", {"tp": 4, "dp": 16, "etp": 4}),
        ("--expert-model-parallel-size 8 --tensor-model-parallel-size 2 --expert-tensor-parallel-size 1",
         {"tp": 2, "dp": 32, "ep": 8}),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params", {"dp": 64, "zero": 3}),
        ("--use-distributed-optimizer --num-distributed-optimizer-instances 4",
         {"dp": 64, "zero": 1, "shard_group": 16}),
        ("--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 2 --num-layers 14",
         {"pp": 4, "dp": 16, "layers_per_stage": (2, 4, 4, 4)}),
        ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et*3|(tt|)*2,mL'",
         {"pp": 2, "dp": 32, "vp": 2, "schedule": "interleaved", "layers_per_stage": (3, 2, 2, 0)}),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 5",
         {"dp": 64, "recompute": "full", "recompute_layers": 5}),
        ("--recompute-granularity selective --recompute-modules moe_act layernorm",
         {"dp": 64, "recompute": "modules", "recompute_modules": ("moe_act", "layernorm")}),
    ],
)  # fmt: skip
def test_what_megatron_flags_mean(flags: str, fields: dict) -> None:
    found = megatron.load(f"{flags} --global-batch-size 64", devices=64).strategy
    said = {"sequence_parallel": fields.get("tp", 1) == 1}
    off = dict.fromkeys(("overlap_grad_reduce", "overlap_param_gather", "overlap_tp", "overlap_moe"), False)
    if fields.get("pp") == 2:
        said["layers_per_stage"] = ()
    assert found == Strategy(**{**said, **off, **fields})


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("", "fp32"), ("--bf16", "bf16"), ("--fp16", "fp16"), ("--bf16 --fp8-format hybrid", "fp8"),
     ("--bf16 --fp8-format e4m3 --fp8-recipe mxfp8", "mxfp8"), ("--bf16 --fp4-format e2m1", "nvfp4")],
)  # fmt: skip
def test_what_megatron_flags_compute_in(flags: str, precision: str) -> None:
    assert megatron.load(f"--global-batch-size 8 {flags}", devices=8).run["precision"] == precision


@pytest.mark.parametrize("text", ["t", "Et|", "E" + "(t*9999|)*9999" + "L", "Et*999999L", "EtmtL", ""])
def test_no_layout_is_no_count_and_never_a_mountain_of_text(text: str) -> None:
    assert mcore.layout_counts(text) == ()


def test_dotted_overrides_a_recipes_python_and_nested_yaml_say_the_same() -> None:
    nested = """
        # recipe
        model:
          tensor_model_parallel_size: 4   # of a node
          recompute_granularity: null
          cp_comm_type: "a2a"
          context_parallel_size: 2
        train:
          global_batch_size: 512
        mixed_precision: bf16_with_fp8_current_scaling_mixed
    """
    dotted = """
        model.tensor_model_parallel_size=4
        model.context_parallel_size=2
        model.cp_comm_type=a2a
        train.global_batch_size=512
        mixed_precision=bf16_with_fp8_current_scaling_mixed
    """
    python = """
        cfg.model.tensor_model_parallel_size = 4
        cfg.model.context_parallel_size = 2  # of two nodes
        cfg.model.cp_comm_type = "a2a"
        cfg.model.recompute_granularity = None
        cfg.train.global_batch_size = 512
        cfg.mixed_precision = 'bf16_with_fp8_current_scaling_mixed'
    """
    one, *others = (bridge.load(dedent(text), devices=16) for text in (nested, dotted, python))
    assert all((other.strategy, other.run) == (one.strategy, one.run) for other in others)
    assert one.strategy.context_kind == "ulysses"
    assert one.run["precision"] == "fp8"


def test_yaml_beyond_plain_settings_is_refused_with_its_line() -> None:
    bad = """
        model: &base
          tensor_model_parallel_size: 4
        train: *base
        list:
        - one
        model.recompute_modules: [a
    """
    told = problems(bridge.load, bad, devices=8)
    assert [line.partition(":")[2].partition(":")[0] for line in told] == ["2", "4", "6", "7"]


TITAN = """
    [job]
    dump_folder = "out"
    [training]
    local_batch_size = 8
    global_batch_size = {batch}
    seq_len = 4096
    [parallelism]
    tensor_parallel_degree = 2
    pipeline_parallel_degree = 2
    pipeline_parallel_schedule = "Interleaved1F1B"
    {more}
    [activation_checkpoint]
    mode = "full"
"""


def test_a_job_of_torchtitan_needs_the_layers_only_for_its_own_split() -> None:
    text = dedent(TITAN.format(batch=32, more=""))
    found = torchtitan.load(text, devices=16, layers=14).strategy
    # generate_llm_fqn_per_model_part: 16 places over 4 stages, one of them for each end of the model.
    assert found == Strategy(
        tp=2, pp=2, dp=4, vp=2, schedule="interleaved", zero=2, layers_per_stage=(3, 4, 4, 3), recompute="full",
        overlap_grad_reduce=True, overlap_param_gather=True, overlap_tp=False, overlap_moe=False,
    )  # fmt: skip
    assert "--layers" in problems(torchtitan.load, text, devices=16)[0]


def test_what_a_job_of_torchtitan_cannot_mean_is_told() -> None:
    more = "context_paralel_degree = 4\ndata_parallel_shard_degree = 3\nfsdp_reshard_after_forward = 1"
    text = TITAN.format(batch=64, more=more.replace("\n", "\n    ")).replace('"full"', '"selective"')
    drained = "a pipeline drained between accumulation steps is not modelled."
    assert problems(torchtitan.load, text, devices=16, layers=14) == [
        f"f:6: training.global_batch_size: 64 is not dp(3) * local_batch_size(8) = 24: {drained}",
        "f:12: parallelism.context_paralel_degree: is unknown. Did you mean parallelism.context_parallel_degree?",
        "f:14: parallelism.fsdp_reshard_after_forward: 1 is not read. Choose from: always, default, never.",
        "f:16: activation_checkpoint.mode: selective is not modelled. Say none or full.",
        "--devices: tp * pp * cp * replicas * shards = 12, not 16 devices.",
    ]


def test_batches_in_tokens_of_later_versions_are_read() -> None:
    tokens = "num_tokens_per_train_step = {step}\n    num_tokens_per_microbatch_per_dp_rank = 8192"
    tokens += "\n    max_context_length = 4096"
    later = TITAN.replace("local_batch_size = 8\n    global_batch_size = {batch}\n    seq_len = 4096", tokens)
    more = "enable_sequence_parallel = false\n    num_pp_microbatches = 4"
    found = torchtitan.load(dedent(later.format(step=131072, more=more)), devices=16, layers=14)
    assert found.run["global_batch"] == 32
    assert found.run["seq_len"] == 4096
    assert (found.strategy.micro_batch, found.strategy.sequence_parallel) == (2, False)
    told = problems(torchtitan.load, later.format(step=131072, more=more.replace("4", "2")), devices=16, layers=14)
    assert "131072 is not dp(4) * num_pp_microbatches(2) * 8192 = 65536" in told[0]
    assert "multiples" in problems(torchtitan.load, later.format(step=131071, more=more), devices=16, layers=14)[0]


def test_deepspeed_takes_any_two_batches_with_the_devices() -> None:
    for said in ('"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2',
                 '"train_batch_size": 64, "gradient_accumulation_steps": 4',
                 '"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4'):  # fmt: skip
        found = deepspeed.load("{" + said + "}", devices=8)
        assert (found.run["global_batch"], found.strategy.micro_batch, found.strategy.dp) == (64, 2, 8)
    assert "three of the four" in problems(deepspeed.load, '{"train_batch_size": 64}')[0]


def test_every_problem_of_a_bad_deepspeed_file_is_told_at_its_line() -> None:
    bad = """{
      "train_batch_size": "auto",
      "train_micro_batch_size_per_gpu": 2,
      "gradient_accumulation_steps": 1,
      "zero_optimization": {"stage": 5,
        "overlap_com": true,
        "offload_optimizer": {"device": "nvme"}},
      "fp16": {"enabled": true},
      "bf16": {"enabled": "yes"}
    }"""
    told = problems(deepspeed.load, bad)
    assert [line.partition(": ")[0] for line in told] == ["f:2", "f:5", "f:6", "f:7", "f:9"]
    assert "Did you mean zero_optimization.overlap_comm?" in told[2]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"model_type": "llama"}', "hf"), ('{"train_batch_size": 1}', "deepspeed"), ("# c\n--bf16", "megatron"),
        ("[parallelism]\nx = 1", "torchtitan"), ("model.num_layers=3", "megatron-bridge"),
        ("cfg.model.num_layers = 3", "megatron-bridge"),
        ("train:\n  x: 1", "megatron-bridge"),
    ],
)  # fmt: skip
def test_a_format_is_recognised_by_its_text(text: str, form: str) -> None:
    assert recognise(text, "f") == form


@pytest.mark.parametrize("text", ["", "hello", "x = 1"])
def test_an_unknown_format_is_asked_for(text: str) -> None:
    with pytest.raises(InputError, match="--format"):
        recognise(text, "f")


@pytest.mark.parametrize("form", ["megatron", "megatron-bridge", "torchtitan"])
def test_devices_are_asked_for_where_dp_is_derived(form: str) -> None:
    with pytest.raises(InputError, match="--devices"):
        load_as(form, "", path="f", devices=0)


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": NaN}', "[" * 100_000, '{"a": 1e999}', "\x00", "{}"])
@pytest.mark.parametrize("form", ["megatron", "megatron-bridge", "torchtitan", "deepspeed"])
def test_rubbish_is_an_input_error(form: str, text: str) -> None:
    with pytest.raises(InputError):
        load_as(form, text, path="f", devices=8)
