"""Matrix FLOPs equal torch's FlopCounterMode, forward and backward, at full size under fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from simulator.arch.flops import forward_flops_per_sequence, model_flops_per_sequence
from simulator.arch.parameters import COUNTING
from simulator.catalog import load_model
from simulator.parallel.recompute import Policy
from simulator.spec.model import ExpertsSpec, LayerSpec, ModelSpec

torch = pytest.importorskip("torch")

from simulator.validate.torch_counts import ours  # noqa: E402
from simulator.validate.torch_counts.blocks import Setting  # noqa: E402
from simulator.validate.torch_counts.tally import custom_formulas, reference_flops  # noqa: E402

BATCH, SEQ_LEN, TARGET = 2, 64, 32
ATTENTION = {"fused": COUNTING, "unfused": replace(COUNTING, fused_attention=False)}
MODELS = (
    "bert-base", "gpt2-124m", "gpt3-175b", "t5-base", "llama3.1-8b", "llama3.1-405b", "mixtral-8x7b",
    "deepseek-v2-lite", "deepseek-v3", "switch-base-8", "gpt-oss-20b", "qwen3-30b-a3b", "opt-350m", "palm-8b",
    "gemma2-2b", "transformer-base",
)  # fmt: skip

WHOLE = ("bert-base", "gpt2-124m", "t5-base", "gpt3-175b")
"""Every layer; of the others four of each stack (three of DeepSeek-V3's first four are dense)."""


@pytest.fixture
def whole_recompute() -> Iterator[None]:
    """Megatron's checkpoint runs the whole region again; torch's stops at the last tensor that backward needs."""
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        yield


def dropless(model: ModelSpec) -> ModelSpec:
    """The model without capacity padding, which model FLOPs leave out."""

    def plain(layer: LayerSpec) -> LayerSpec:
        spec: ExpertsSpec | None = layer.experts
        return replace(layer, experts=replace(spec, capacity_factor=0.0)) if spec else layer

    stacks = tuple(
        replace(stack, runs=tuple((plain(layer), count) for layer, count in stack.runs)) for stack in model.stacks
    )
    return replace(model, stacks=stacks)


@pytest.mark.parametrize("name", MODELS)
def test_the_torch_convention_is_torchs_count(name: str) -> None:
    """Unfused, backward is twice forward; a flash kernel makes the scores again: one product more in backward."""
    model = dropless(load_model(name))
    model = model if name in WHOLE else ours.first_layers(model, 4)
    setting = Setting(model=model, kernels=ATTENTION["unfused"], policy=Policy())
    assert reference_flops(setting, BATCH, SEQ_LEN, TARGET) == (
        BATCH * forward_flops_per_sequence(model, SEQ_LEN, TARGET),
        BATCH * 2 * forward_flops_per_sequence(model, SEQ_LEN, TARGET),
    )
    assert model_flops_per_sequence(model, SEQ_LEN, TARGET, "torch") == 3 * forward_flops_per_sequence(
        model, SEQ_LEN, TARGET
    )


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", ["gpt2-124m", "t5-base", "mixtral-8x7b", "deepseek-v2-lite", "switch-base-8"])
def test_executed_operations_are_torchs_with_padding_and_flash(name: str, attention: str) -> None:
    """A capacity factor pads the experts' rows, and a flash kernel's backward has five products."""
    model, kernels = ours.first_layers(load_model(name), 2), ATTENTION[attention]
    mine = ours.flops(ours.segments(model, kernels, BATCH, SEQ_LEN, TARGET), Policy())
    assert reference_flops(Setting(model=model, kernels=kernels, policy=Policy()), BATCH, SEQ_LEN, TARGET) == mine


@pytest.mark.parametrize("name", ["moe-256-h", "moe-143m"])
def test_recurrent_mixtures_skip_the_first_states_gradient(name: str) -> None:
    """The state before the first step is a constant, so backward has one recurrent product less per LSTM layer."""
    model = load_model(name)
    mine = ours.flops(ours.segments(model, COUNTING, 32, 16), Policy())
    assert reference_flops(Setting(model=model, kernels=COUNTING, policy=Policy()), 32, 16) == mine
    missing = sum(
        2 * 32 * 4 * spec.lstm.hidden * (spec.lstm.projection or spec.lstm.hidden) * count
        for spec, count in model.stacks[0].runs
        if spec.lstm is not None
    )
    assert mine[1] == 2 * mine[0] - missing


MODULES = ("core_attn", "attention", "mlp", "moe", "moe_act", "layernorm", "mla_up_proj", "shared_experts")


@pytest.mark.usefixtures("whole_recompute")
@pytest.mark.parametrize("module", ["full", *MODULES])
@pytest.mark.parametrize("name", ["gpt2-124m", "deepseek-v2-lite", "switch-base-8"])
def test_recomputed_forwards_are_counted(name: str, module: str) -> None:
    model = ours.first_layers(load_model(name), 2)
    policy = Policy(full=True) if module == "full" else Policy(modules=frozenset({module}))
    mine = ours.flops(ours.segments(model, COUNTING, BATCH, SEQ_LEN, TARGET), policy)
    setting = Setting(model=model, kernels=COUNTING, policy=policy)
    assert reference_flops(setting, BATCH, SEQ_LEN, TARGET) == mine


def test_torchs_own_checkpoint_stops_before_the_last_product() -> None:
    """With early stop (torch's default) a layer's last product is not run again: its output is kept by nobody."""
    model = ours.first_layers(load_model("llama3.1-8b"), 2)
    policy = Policy(full=True)
    _, whole = ours.flops(ours.segments(model, COUNTING, BATCH, SEQ_LEN), policy)
    _, stopped = reference_flops(Setting(model=model, kernels=COUNTING, policy=policy), BATCH, SEQ_LEN)
    down_projection = 2 * BATCH * SEQ_LEN * 14336 * 4096
    assert whole - stopped == model.layers * down_projection


WITNESSES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("BertForPreTraining", {}),
    "gpt2-124m": ("GPT2LMHeadModel", {}),
    "llama3.1-8b": ("LlamaForCausalLM", {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False}),
    "mixtral-8x7b": ("MixtralForCausalLM", {"tie_word_embeddings": False}),
    "qwen3-30b-a3b": ("Qwen3MoeForCausalLM", {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "vocab_size": 151936, "tie_word_embeddings": False}),
    "deepseek-v3": ("DeepseekV3ForCausalLM", {}),
    "gpt-oss-20b": ("GptOssForCausalLM", {"num_hidden_layers": 24, "num_local_experts": 32}),
}  # fmt: skip
"""Class and sizes of transformers' own implementation of a model."""


@pytest.mark.parametrize("name", WITNESSES)
def test_transformers_executes_the_same_flops(name: str) -> None:
    """Eager attention, and experts as grouped products; transformers' DeepSeek-V3 has no multi-token prediction."""
    transformers = pytest.importorskip("transformers")
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    family, sizes = WITNESSES[name]
    kind = getattr(transformers, family)
    config = kind.config_class(**sizes)
    config._attn_implementation = "eager"
    model = load_model(name)
    if model.mixture:
        config._experts_implementation = "grouped_mm"
    layers = 5 if name not in WHOLE else model.layers
    config.num_hidden_layers = layers
    model = ours.first_layers(model, layers)
    model = replace(model, head=replace(model.head, mtp_layers=0))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode():
            module = kind(config).train()
            ids = torch.zeros(BATCH, 128, dtype=torch.int64)
            with FlopCounterMode(display=False, custom_mapping=custom_formulas()) as forward:
                output = module(input_ids=ids, use_cache=False)
                outputs = [v for v in output.values() if isinstance(v, torch.Tensor) and v.requires_grad]
                loss = sum(v.float().sum() for v in outputs[:2])
            with FlopCounterMode(display=False, custom_mapping=custom_formulas()) as backward:
                loss.backward()
    finally:
        torch.set_default_dtype(before)
    mine = ours.flops(ours.segments(model, ATTENTION["unfused"], BATCH, 128), Policy())
    assert (forward.get_total_flops(), backward.get_total_flops()) == mine
