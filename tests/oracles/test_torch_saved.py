"""Tensors kept for backward equal torch's, storage by storage: every kernel option, precision and recompute option.

The torch side counts what saved-tensor hooks see, deduplicated by storage, parameters and constant tables excluded.
Nothing here has a tolerance; where torch's module keeps something else, the difference is written out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from simulator.arch.parameters import COUNTING
from simulator.arch.shard import Kernels
from simulator.catalog import load_model
from simulator.parallel.recompute import Policy
from simulator.spec.model import ModelSpec
from tests.support import gpt

torch = pytest.importorskip("torch")

from simulator.validate.torch_counts import ours  # noqa: E402
from simulator.validate.torch_counts.blocks import Setting  # noqa: E402
from simulator.validate.torch_counts.tally import reference_saved, saved_sizes  # noqa: E402

UNFUSED_CORE = replace(COUNTING, fused_attention=False)
PLAIN = replace(
    COUNTING, fused_attention=False, fused_softmax=False, fused_bias_activation=False, fused_bias_dropout=False,
    fused_norm=False, fused_rope=False, fused_cross_entropy=False,
)  # fmt: skip
KERNELS = {"fused": COUNTING, "unfused core": UNFUSED_CORE, "plain": PLAIN}
MODELS = (
    "transformer-base", "bert-base", "gpt2-124m", "opt-350m", "bloom-176b", "t5-base", "palm-8b", "llama3.1-8b",
    "gemma2-2b", "gemma3-1b", "nemotron4-15b", "mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite", "deepseek-v3",
    "gpt-oss-20b", "llama4-scout", "switch-base-8", "st-moe-32b", "moe-256-h", "moe-143m",
)  # fmt: skip
MODULES = ("core_attn", "attention", "mlp", "moe", "moe_act", "layernorm", "mla_up_proj", "shared_experts")
RECOMPUTED = (
    "bert-base", "gpt2-124m", "t5-base", "palm-8b", "llama3.1-8b", "gemma2-2b", "mixtral-8x7b", "deepseek-v2-lite",
    "deepseek-v3", "switch-base-8", "gpt-oss-20b", "llama4-scout",
)  # fmt: skip
SEQ_LEN, TARGET = 64, 32


def tensors(model: ModelSpec, kernels: Kernels, policy: Policy) -> tuple[Counter[int], Counter[int]]:
    """Sizes of saved tensors, ours and torch's, of the first two layers of each stack and both ends."""
    batch = 32 if model.mixture and any(s.layer(0).lstm for s in model.stacks) else 2
    setting = Setting(model=model, kernels=kernels, policy=policy)
    theirs = reference_saved(setting, batch, SEQ_LEN, TARGET, layers=2)
    parts = ours.segments(model, kernels, batch, SEQ_LEN, TARGET, layers=2)
    return Counter(ours.saved_sizes(parts, policy)), Counter(theirs)


@pytest.mark.parametrize(
    ("precision", "dropout"), [("bf16", False), ("bf16", True), ("fp32", True)], ids=["bf16", "bf16-dropout", "fp32"]
)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", MODELS)
def test_saved_tensors_are_torchs(name: str, kernels: str, precision: str, dropout: bool) -> None:
    options = replace(KERNELS[kernels], dropout=dropout, activation_dtype=precision, gemm_dtype=precision)
    mine, theirs = tensors(load_model(name), options, Policy())
    assert mine == theirs


def shared_bias(model: ModelSpec) -> Counter[int]:
    """A checkpoint keeps its inputs, the stack's relative-position bias too: heads x s x s, which our layers do not
    own (a bias enters from outside). It is kept once, whichever layers are recomputed.
    """
    lengths = (SEQ_LEN, TARGET)
    return Counter(
        round(2.0 * stack.layer(0).attention.heads * length**2)
        for stack, length in zip(model.stacks, lengths, strict=False)
        if stack.layer(0).attention is not None and stack.layer(0).attention.relative_bias
    )


def unsaid(name: str, kernels: str, module: str) -> bool:
    """Cases that our tensors do not name: norms after the add are the residual stream and cannot be freed (BERT), and
    an unfused encoder-decoder's norms, whose fp32 copies are as large as other tensors of the other stack.
    """
    return module == "layernorm" and (
        name == "bert-base" or (kernels == "plain" and len(load_model(name).stacks) > 1)
    )


CASES = [
    (name, kernels, module)
    for name in RECOMPUTED
    for kernels in KERNELS
    for module in ("full", *MODULES)
    if not unsaid(name, kernels, module)
]


@pytest.mark.parametrize(("name", "kernels", "module"), CASES)
def test_saved_tensors_under_each_recompute_option_are_torchs(name: str, kernels: str, module: str) -> None:
    model = load_model(name)
    policy = Policy(full=True) if module == "full" else Policy(modules=frozenset({module}))
    mine, theirs = tensors(model, KERNELS[kernels], policy)
    expected: Counter[int] = Counter()
    if module in {"full", "core_attn", "attention"}:
        expected += shared_bias(model)
    latent = module == "mla_up_proj" and model.stacks[0].layer(0).attention.latent
    if latent:
        expected += latent_inputs(model, kernels)
    if module == "layernorm" and kernels == "plain":
        norm = 2 * SEQ_LEN * model.hidden
        wide = mine[4 * norm] - theirs[4 * norm]
        # The unfused norm's fp32 copy goes with its output and the 16-bit input stays. Ours counts the copy instead.
        assert wide > 0
        mine[4 * norm] -= wide
        mine[2 * norm] += wide
    assert +mine + expected == +theirs


def latent_inputs(model: ModelSpec, kernels: str) -> Counter[int]:
    """Recomputing MLA's up-projection keeps its small input, the shared rotary key, per layer of our two and of the MTP
    module. An unfused core copies q, k and v heads first, so that freeing the originals frees nothing.
    """
    spec, rows = model.stacks[0].layer(0).attention, 2 * SEQ_LEN * 2
    layers = 2 + model.head.mtp_layers
    kept = Counter({rows * spec.rope_head_dim: layers})
    if kernels != "fused":
        for width in (spec.head_dim, spec.head_dim, spec.value_head_dim):
            kept[rows * spec.heads * width] += layers
    return kept


@pytest.mark.parametrize(("hidden", "heads"), [(12288, 96), (20480, 128), (25600, 160)], ids=["175B", "530B", "1T"])
def test_korthikanti_falls_out_of_torchs_tensors(hidden: int, heads: int) -> None:
    """34 s b h + 5 a s^2 b, and 34 s b h with the core recomputed (Korthikanti 2022 eq. 1 and 6), at full shape.

    The hooks see the norms' fp32 statistics besides: 2 norms x 2 x 4 B per token, which the paper leaves out.
    """
    s, b = 2048, 1
    kernels = replace(UNFUSED_CORE, dropout=True)
    for policy, formula in (
        (Policy(), 34 * s * b * hidden + 5 * heads * s * s * b),
        (Policy(modules=frozenset({"core_attn"})), 34 * s * b * hidden),
    ):
        sizes = [
            Counter(reference_saved(Setting(model=gpt(hidden, 2, heads, vocab=512), kernels=kernels, policy=policy),
                                    b, s, layers=layers))
            for layers in (1, 2)
        ]  # fmt: skip
        assert (sizes[1] - sizes[0]).total() > 0
        assert sum(size * count for size, count in (sizes[1] - sizes[0]).items()) == formula + 16 * s * b


def test_layer_norm_statistics_are_torchs_own() -> None:
    x = torch.empty(2, 8, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    sizes = saved_sizes(lambda: torch.nn.functional.layer_norm(x, (64,), weight, weight), [weight])
    assert sizes == [2 * 8 * 64 * 2, 2 * 8 * 4, 2 * 8 * 4]
