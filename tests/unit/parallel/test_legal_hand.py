"""Strategies that no framework would start: what is said of each, word for word, and of those at the edge nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.errors import InputError
from simulator.parallel.legal import attentions, check, expert_specs
from simulator.spec.model import AttentionSpec, FeedForwardSpec, LayerSpec, LstmSpec, ModelSpec, StackSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from tests.support import dgx, gpt, mixture

DENSE = gpt(48, 6, 12, vocab=1000, seq_len=96)
MIXED = mixture(64, 4, 8, experts=6, top_k=2, expert_hidden=60)
RUN = Run(global_batch=64)
BASE = Strategy(dp=8)


def _said(strategy: Strategy, *, model: ModelSpec = DENSE, run: Run = RUN) -> list[tuple[str, str, str]]:
    try:
        check(model, dgx(1), run, strategy)
    except InputError as refused:
        return [(problem.where, problem.message, problem.hint) for problem in refused.problems]
    return []


def test_legal_strategies_are_let_through() -> None:
    edge = [Strategy(tp=4, dp=2), Strategy(pp=2, dp=4), Strategy(pp=2, vp=3, dp=4, schedule="interleaved"),
            Strategy(cp=2, dp=4), Strategy(dp=8, recompute="full", recompute_layers=3, offload_inputs=True),
            Strategy(pp=2, dp=4, layers_per_stage=(6, 0)), Strategy(dp=8, recompute="modules",
            recompute_modules=("mlp",)),
            Strategy(dp=8, shard_group=4), Strategy(pp=2, dp=4, recompute="full", recompute_layers=(1, 2)),
            Strategy(tp=2, cp=2, dp=2, context_kind="ulysses"),
            Strategy(dp=8, context_kind="ulysses")]  # fmt: skip
    assert [_said(strategy) for strategy in edge] == [[]] * len(edge)
    assert _said(Strategy(dp=8, ep=2, etp=2), model=MIXED) == []
    assert _said(Strategy(tp=8, dp=1), model=MIXED) == []
    for attention in ("", "fused", "unfused"):
        assert _said(BASE, run=replace(RUN, attention=attention)) == []


@pytest.mark.parametrize(
    ("field", "run", "word", "hint"),
    [("schedule", False, "gpip", "gpipe"), ("recompute", False, "ful", "full"), ("context_kind", False, "rings",
     "ring"),
     ("offload", False, "optimiser", "optimizer"), ("precision", True, "bf61", "bf16"), ("optimizer", True, "adm",
      "adam"),
     ("flops_convention", True, "megatro", "megatron"), ("attention", True, "fusd", "fused")],
)  # fmt: skip
def test_unknown_words_get_the_nearest_known_one(field: str, run: bool, word: str, hint: str) -> None:
    changed: dict[str, Any] = {field: word}
    said = _said(BASE if run else replace(BASE, **changed), run=replace(RUN, **changed) if run else RUN)
    assert [(where, message) for where, message, _ in said] == [(field, f"{field} {word!r} is unknown.")]
    assert said[0][2].startswith(f"Did you mean {hint}")


@pytest.mark.parametrize(
    ("changes", "where", "message", "hint"),
    [
        ({"recompute": "modules"}, "recompute_modules", "recompute = modules names no module.",
         "Choose from: core_attn, "),
        ({"recompute": "modules", "recompute_modules": ("mlq",)}, "recompute_modules",
         "recompute_modules 'mlq' is unknown.", "Did you mean mlp"),
        ({"order": ("tp", "cp", "ep", "dp", "dp")}, "order",
         "order tp-cp-ep-dp-dp must hold tp, cp, ep, dp and pp once each.", ""),
        *(({degree: 0}, degree, f"{degree}(0) must be a whole number of at least 1.", "")
          for degree in ("tp", "pp", "dp", "cp", "ep", "etp", "vp", "micro_batch")),
        ({"tp": True}, "tp", "tp(True) must be a whole number of at least 1.", ""),
        ({"tp": 2.0}, "tp", "tp(2.0) must be a whole number of at least 1.", ""),
        ({"zero": 4}, "zero", "zero(4) must be 0, 1, 2 or 3.", ""),
        ({"recompute": "full", "recompute_layers": -1}, "recompute_layers",
         "recompute_layers(-1) must be whole numbers of at least 0.", ""),
        ({"recompute": "full", "recompute_layers": (1, -1)}, "recompute_layers",
         "recompute_layers(1,-1) must be whole numbers of at least 0.", ""),
        ({"dp": 4}, "dp", "tp(1) * cp(1) * pp(1) * dp(4) = 4, but dgx-test has 1 nodes * 8 = 8 devices.",
         "dp = 8 would use 8."),
        ({"tp": 3, "dp": 1}, "dp", "tp(3) * cp(1) * pp(1) * dp(1) = 3, but dgx-test has 1 nodes * 8 = 8 devices.",
         "dp = 2 would use 6."),
        ({"pp": 2, "tp": 6, "dp": 1}, "dp",
         "tp(6) * cp(1) * pp(2) * dp(1) = 12, but dgx-test has 1 nodes * 8 = 8 devices.", ""),
        ({"cp": 2, "pp": 2, "dp": 3}, "dp",
         "tp(1) * cp(2) * pp(2) * dp(3) = 12, but dgx-test has 1 nodes * 8 = 8 devices.", "dp = 2 would use 8."),
        ({"micro_batch": 3}, "global_batch", "global_batch(64) % (dp(8) * micro_batch(3)) = 16, not 0.",
         "The nearest batch is 72."),
        ({"micro_batch": 24}, "global_batch", "global_batch(64) % (dp(8) * micro_batch(24)) = 64, not 0.",
         "The nearest batch is 192."),
        ({"shard_group": 3}, "shard_group", "shard_group(3) does not divide dp(8).", ""),
        ({"tp": 8, "dp": 1}, "tp", f"tp(8) does not divide heads(12) of {DENSE.name}.", "6 would."),
        ({"cp": 8, "dp": 1, "context_kind": "ulysses"}, "cp",
         "ulysses: cp(8) does not divide the 12 heads of a tp rank.", ""),
        ({"ep": 2}, "ep", f"ep(2) and etp(1) need experts, and {DENSE.name} has none.", "Use ep = 1 and etp = 1."),
        ({"etp": 2}, "ep", f"ep(1) and etp(2) need experts, and {DENSE.name} has none.", "Use ep = 1 and etp = 1."),
        ({"pp": 8, "dp": 1}, "pp", f"pp(8) * vp(1) = 8 stages, but {DENSE.name} has 6 layers.", "At most 6 stages."),
        ({"pp": 2, "dp": 4, "layers_per_stage": (6,)}, "layers_per_stage",
         "layers_per_stage lists 1 stages, but pp(2) * vp(1) = 2.", ""),
        ({"pp": 2, "dp": 4, "layers_per_stage": (2, 3)}, "layers_per_stage",
         f"layers_per_stage sums to 5, but {DENSE.name} has 6 layers.", ""),
        ({"pp": 2, "dp": 4, "layers_per_stage": (7, -1)}, "layers_per_stage",
         "layers_per_stage holds a negative number.", ""),
        ({"offload_inputs": True}, "offload_inputs", "offload_inputs needs recompute = full, not none.", ""),
        ({"recompute_layers": 2}, "recompute_layers", "recompute_layers(2) needs recompute = full, not none.", ""),
        ({"pp": 2, "dp": 4, "recompute": "full", "recompute_layers": (1,)}, "recompute_layers",
         "recompute_layers lists 1 stages, but pp(2) * vp(1) = 2.", "One number stands for every stage."),
        ({"offload": "optimizer", "zero": 0}, "offload", "offload = optimizer needs ZeRO-1 at least, not zero(0).",
         "Use zero = 1."),
    ],
)  # fmt: skip
def test_one_thing_wrong_with_a_strategy_is_said_where_and_how(
    changes: dict[str, Any], where: str, message: str, hint: str
) -> None:
    said = _said(replace(BASE, **changes))
    mine = [entry for entry in said if entry[:2] == (where, message)]
    assert len(mine) == 1, said
    assert mine[0][2].startswith(hint)
    assert bool(mine[0][2]) == bool(hint)
    if where != "dp" and changes.get("offload") is None:
        assert len(said) == 1, said


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [({"global_batch": 0}, "global_batch", "global_batch(0) must be a whole number of at least 1."),
     ({"seq_len": -1}, "seq_len", "seq_len(-1) must be a whole number of at least 0."),
     ({"routing_group": -1}, "routing_group", "routing_group(-1) must be a whole number of at least 0."),
     ({"expert_imbalance": 0.5}, "expert_imbalance", "expert_imbalance(0.5) is a maximum over a mean: at least 1."),
     ({"expert_imbalance": float("nan")}, "expert_imbalance",
      "expert_imbalance(nan) is a maximum over a mean: at least 1.")],
)  # fmt: skip
def test_one_thing_wrong_with_a_run_is_said(changes: dict[str, Any], where: str, message: str) -> None:
    assert _said(BASE, run=replace(RUN, **changes)) == [(where, message, "")]


def test_batches_of_too_many_tasks_are_refused_and_of_the_most_are_not() -> None:
    """3 phases of 2 stages: a million tasks are 166,666 micro-batches of 4 replicas."""
    strategy = Strategy(pp=2, dp=4)
    assert _said(strategy, run=Run(global_batch=4 * 166_666)) == []
    many = "3 phases * 2 stages * 166,667 micro-batches = 1,000,002 tasks, more than the 1,000,000 that are simulated."
    assert _said(strategy, run=Run(global_batch=4 * 166_667)) == [
        ("global_batch", many, "A larger micro_batch or dp makes fewer.")]  # fmt: skip


def test_sequences_are_split_over_context_and_under_sequence_parallelism_over_tensor_ranks() -> None:
    strategy = Strategy(tp=4, cp=2, dp=1)
    odd = replace(RUN, seq_len=100, target_seq_len=90)
    needs = "is not a multiple of cp(2) * tp(4) = 8, as splitting the sequence needs."
    assert _said(strategy, run=odd) == [("seq_len", f"seq_len(100) {needs}", "104 would be."),
                                        ("target_seq_len", f"target_seq_len(90) {needs}", "96 would be.")]  # fmt: skip
    assert _said(replace(strategy, sequence_parallel=False), run=odd) == []
    assert [where for where, _, _ in _said(strategy, model=replace(DENSE, seq_len=100))] == ["seq_len"]


def test_heads_feed_forwards_and_recurrent_layers_bound_tp() -> None:
    layer = LayerSpec(attention=AttentionSpec(heads=12, kv_heads=3, head_dim=4, value_head_dim=4),
                      feed_forward=FeedForwardSpec(hidden=50))  # fmt: skip
    model = replace(DENSE, stacks=(StackSpec(role="decoder", runs=((layer, 6),)),))
    assert _said(Strategy(tp=4, dp=2), model=model) == [
        ("tp", f"tp(4) and kv_heads(3) of {model.name}: neither divides the other.", "3 would."),
        ("tp", "tp(4) does not divide the feed-forward size(50).", "2 would.")]  # fmt: skip
    assert _said(Strategy(tp=2, cp=4, dp=1, context_kind="ulysses", sequence_parallel=False), model=replace(
        DENSE, stacks=(StackSpec(role="decoder", runs=((replace(layer, attention=AttentionSpec(
            heads=12, kv_heads=12, head_dim=4, value_head_dim=4)), 6),)),))) == [
        ("cp", "ulysses: cp(4) does not divide the 6 heads of a tp rank.", "")]  # fmt: skip
    # 12 heads over 4 tensor ranks are 3 each; over 5, which is refused anyway, 2 and no part of one.
    assert _said(Strategy(tp=4, cp=2, dp=1, context_kind="ulysses")) == [
        ("cp", "ulysses: cp(2) does not divide the 3 heads of a tp rank.", "")]  # fmt: skip
    assert "cp" not in [where for where, _, _ in _said(Strategy(tp=5, cp=2, context_kind="ulysses"))]
    lstm = replace(DENSE, stacks=(StackSpec(role="decoder", runs=((LayerSpec(lstm=LstmSpec(hidden=8)), 6),)),))
    assert _said(Strategy(tp=2, dp=4), model=lstm) == [
        ("tp", "tensor parallelism of LSTM layers is not modelled.", "Use tp = 1.")]  # fmt: skip
    assert _said(BASE, model=lstm) == []
    across = replace(layer, cross_attention=layer.attention)
    both = StackSpec(role="decoder", runs=((across, 1), (layer, 2)))
    assert attentions(replace(model, stacks=(both,))) == [layer.attention]
    assert attentions(lstm) == []


def test_experts_bound_ep_and_etp() -> None:
    (spec,) = expert_specs(MIXED)
    assert (spec.count, expert_specs(DENSE)) == (6, [])
    assert _said(Strategy(dp=8, ep=4, etp=1), model=MIXED) == [
        ("ep", "ep(4) does not divide the 6 experts of mixture.", "3 would.")]  # fmt: skip
    assert _said(Strategy(dp=8, ep=1, etp=8), model=MIXED) == [
        ("etp", "etp(8) does not divide the expert size(60).", "6 would.")]  # fmt: skip
    assert _said(Strategy(dp=8, ep=3, etp=2), model=MIXED) == [
        ("ep", "folding: tp(1) * cp(1) * dp(8) = 8 is not a multiple of ep(3) * etp(2) = 6.", "ep * etp = 4 would be.")
    ]
    assert _said(Strategy(dp=8, ep=6, etp=6), model=MIXED) == [
        ("ep", "folding: tp(1) * cp(1) * dp(8) = 8 is not a multiple of ep(6) * etp(6) = 36.", "ep * etp = 8 would be.")
    ]
    assert _said(Strategy(tp=2, cp=2, dp=2, ep=2, etp=4), model=MIXED) == []
