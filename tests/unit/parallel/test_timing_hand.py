"""Seconds of segments put together by hand from the seconds of their single kernels and collectives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.arch.layer import Segment
from simulator.arch.operations import AttentionCore, Collective, Gemm, GroupedGemm, Lookup, Operation, Pointwise, Work
from simulator.catalog import load_device
from simulator.cluster.attention import kernel_slowdown
from simulator.cluster.device import (
    attention_time_s,
    gemm_time_s,
    grouped_gemm_time_s,
    lookup_time_s,
    pointwise_time_s,
)
from simulator.cluster.dispatch import deduplicated_exchange_s
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.parallel.recompute import Policy
from simulator.parallel.timing import (
    CHANNEL_SHARE,
    SegmentTime,
    exposed_s,
    segment_times,
    segment_times_by_policy,
    work_times_s,
)
from simulator.spec.kernels import MEASURED_LIMITS, MeasuredKernels, PowerLimit, kernel_model_for, sustained_slowdown
from tests.support import a100, dgx

COLD = replace(a100(), kernels=kernel_model_for("ampere", "a100-test", {}).cold(), generation="none")
CLUSTER = dgx(4, COLD)
GROUPS = {"tp": Group(8), "ep": Group(16), "dp": Group(4, 8)}
BIG, SMALL = Gemm(m=4096, n=4096, k=4096), Gemm(m=512, n=512, k=512, repeat=3)
CORE = AttentionCore(batch=2, heads=8, kv_heads=4, q_len=1024, kv_len=2048, head_dim=64, value_head_dim=96, causal=True)
EXPERTS = GroupedGemm(experts=8, tokens=4096, n=2048, k=1024, imbalance=1.25)
PASS, ROWS = Pointwise(bytes=1e8, flops=1e6, kernels=3), Lookup(rows=1e4, width_bytes=2048)


def _sum(kind: Any, mega_bytes: float, axis: str = "tp", **changes: Any) -> Collective:
    return Collective(kind=kind, axis=axis, bytes=mega_bytes * 1e6, **changes)


def _s(work: Work) -> float:
    return float(work_times_s([work], CLUSTER, GROUPS)[0])


PLAIN = Policy()


def _times(*operations: Operation, policy: Policy = PLAIN) -> SegmentTime:
    segment = Segment(name="s", operations=operations, input_bytes=1.0)
    return segment_times([segment], policy, CLUSTER, GROUPS)["s"]


def test_every_work_takes_its_kernel_s_time() -> None:
    attention = {"batch": 2, "heads": 8, "kv_heads": 4, "q_len": 1024, "kv_len": 2048, "head_dim": 64,
                 "value_head_dim": 96, "causal": True}  # fmt: skip
    windowed = replace(CORE, window=256, backward=True, kernel="flash1")
    fp32 = replace(BIG, dtype="fp32", batch=2)
    works = [
        BIG,
        ROWS,
        CORE,
        SMALL,
        EXPERTS,
        PASS,
        windowed,
        fp32,
        _sum("all_reduce", 8),
        _sum("all_gather", 8, "ep"),
        _sum("all_to_all", 8, "ep", copies=4),
        _sum("all_to_all", 8, "ep"),
    ]
    expected = [
        gemm_time_s(COLD, "bf16", 4096, 4096, 4096),
        lookup_time_s(COLD, 1e4, 2048),
        attention_time_s(COLD, "bf16", **attention),
        3 * gemm_time_s(COLD, "bf16", 512, 512, 512),
        grouped_gemm_time_s(COLD, "bf16", experts=8, tokens=4096, n=2048, k=1024, imbalance=1.25),
        pointwise_time_s(COLD, 1e8, 1e6, 3),
        attention_time_s(COLD, "bf16", window=256, backward=True, **attention) * kernel_slowdown("ampere", "flash1"),
        gemm_time_s(COLD, "fp32", 4096, 4096, 4096, 2),
        collective_time_s(CLUSTER, "all_reduce", 8e6, GROUPS["tp"]),
        collective_time_s(CLUSTER, "all_gather", 8e6, GROUPS["ep"]),
        deduplicated_exchange_s(CLUSTER, 8e6, 4, GROUPS["ep"]),
        collective_time_s(CLUSTER, "all_to_all", 8e6, GROUPS["ep"]),
    ]
    assert [float(seconds) for seconds in work_times_s(works, CLUSTER, GROUPS)] == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) == len(expected)


def test_an_axis_may_feel_other_links_and_another_device_may_compute() -> None:
    slow = replace(CLUSTER, tiers=(replace(CLUSTER.tiers[0], bandwidth_bytes_per_s=30e9), CLUSTER.tiers[1]))
    works = [_sum("all_reduce", 8), _sum("all_reduce", 8, "ep"), BIG]
    tp, ep, gemm = work_times_s(works, CLUSTER, GROUPS, {"tp": slow})
    assert tp == collective_time_s(slow, "all_reduce", 8e6, GROUPS["tp"]) > 2 * _s(works[0])
    assert (ep, gemm) == (_s(works[1]), _s(BIG))
    half = replace(COLD, peak_flops_per_s={"bf16": 156e12})
    assert work_times_s([BIG], CLUSTER, GROUPS, device=half)[0] == gemm_time_s(half, "bf16", 4096, 4096, 4096)


def test_columns_of_strategies_take_each_strategy_s_own_time() -> None:
    """3,000 strategies with few distinct shapes: the same seconds as one by one, in the strategies' own order."""
    rows = np.resize(np.array([128.0, 4096.0, 640.0, 128.0, 2000.0]), 3000)
    works: list[Work] = [Gemm(m=rows, n=1024, k=512, repeat=2), Gemm(m=64, n=rows, k=512),
                         replace(EXPERTS, tokens=rows), replace(CORE, q_len=rows, kv_len=rows)]  # fmt: skip
    found = work_times_s(works, CLUSTER, GROUPS)
    for place in (0, 1, 2, 4, 2998, 2999):
        size = float(rows[place])
        single: list[Work] = [Gemm(m=size, n=1024, k=512, repeat=2), Gemm(m=64, n=size, k=512),
                              replace(EXPERTS, tokens=size), replace(CORE, q_len=size, kv_len=size)]  # fmt: skip
        assert [each[place] for each in found] == pytest.approx([_s(work) for work in single], rel=1e-12)
    assert [each.shape for each in found] == [(3000,)] * 4


def test_a_segment_adds_its_works_by_kind_and_by_axis() -> None:
    reduced = _sum("all_reduce", 8)
    first = Operation(name="a", forward=(BIG, PASS, reduced), input_grad=(SMALL,), weight_grad=(ROWS, BIG))
    second = Operation(name="b", forward=(SMALL, ROWS, CORE, EXPERTS, _sum("all_gather", 8, "ep")), modules=("m",))
    found = _times(first, second, policy=Policy(modules=frozenset({"m"})))
    assert found.forward.parts == pytest.approx(
        {"gemm": _s(BIG) + _s(SMALL), "pointwise": _s(PASS), "tp": _s(reduced), "lookup": _s(ROWS),
         "attention": _s(CORE), "grouped_gemm": _s(EXPERTS), "ep": _s(_sum("all_gather", 8, "ep"))},
        rel=1e-12)  # fmt: skip
    assert found.forward.total_s == pytest.approx(sum(found.forward.parts.values()), rel=1e-12)
    assert found.input_grad.parts == pytest.approx({"gemm": _s(SMALL)}, rel=1e-12)
    assert found.weight_grad.parts == pytest.approx({"lookup": _s(ROWS), "gemm": _s(BIG)}, rel=1e-12)
    assert found.recompute.parts == pytest.approx(
        {"gemm": _s(SMALL), "lookup": _s(ROWS), "attention": _s(CORE), "grouped_gemm": _s(EXPERTS),
         "ep": _s(_sum("all_gather", 8, "ep"))}, rel=1e-12)  # fmt: skip
    assert (found.forward.hidden, _times(first, second).recompute.parts) == ({}, {})


def test_long_columns_are_evaluated_once_per_distinct_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 strategies of three shapes: the formula sees three. Fewer than 2,048 are all evaluated."""
    seen: list[int] = []

    def counted(device: Any, dtype: str, **fields: Any) -> Any:
        seen.append(fields["m"].size)
        return gemm_time_s(device, dtype, **fields)

    monkeypatch.setattr("simulator.parallel.timing.gemm_time_s", counted)
    for count in (3000, 2048, 2047):
        rows, columns = np.resize([128.0, 4096.0], count), np.resize([64.0, 64.0, 64.0, 512.0], count)
        (found,) = work_times_s([Gemm(m=rows, n=columns, k=512)], CLUSTER, GROUPS)
        shapes = ((128, 64), (4096, 64), (4096, 512))
        assert found[[0, 1, 3]] == pytest.approx([_s(Gemm(m=m, n=n, k=512)) for m, n in shapes])
    assert [size for size in seen if size > 1] == [3, 3, 2047]


def test_a_calibrated_device_times_passes_by_their_name() -> None:
    curves = {"gelu": ((1.0, 1.0), (1e15, 1.0)), "plain": ((1.0, 5.0), (1e15, 5.0))}
    own = replace(COLD.kernels, measured=MeasuredKernels(sums={}, curves=curves))
    works = [Pointwise(bytes=8, kernel="gelu"), Pointwise(bytes=8, kernel="add"), Pointwise(bytes=8)]
    found = work_times_s(works, dgx(4, replace(COLD, kernels=own)), GROUPS)
    assert [float(seconds) for seconds in found] == pytest.approx([1.0, 5.0, 5.0])


def test_arithmetic_may_hold_a_pass_up() -> None:
    busy = Pointwise(bytes=8, flops=1e12)
    assert _s(busy) == pytest.approx(float(pointwise_time_s(COLD, 8, 1e12, 1)), rel=1e-12)
    assert _s(busy) > 1e12 / COLD.vector_flops_per_s


def test_segments_feel_the_links_of_their_groups() -> None:
    slow = replace(CLUSTER, tiers=tuple(replace(tier, bandwidth_bytes_per_s=1e9) for tier in CLUSTER.tiers))
    works = (_sum("all_reduce", 8), _sum("all_to_all", 8, "ep", copies=4))
    segment = Segment(name="s", operations=(Operation(name="a", forward=works),), input_bytes=1.0)
    found = segment_times([segment], PLAIN, CLUSTER, GROUPS, {"tp": slow, "ep": slow})["s"].forward.parts
    expected = [float(collective_time_s(slow, "all_reduce", 8e6, GROUPS["tp"])),
                float(deduplicated_exchange_s(slow, 8e6, 4, GROUPS["ep"]))]  # fmt: skip
    assert [found["tp"], found["ep"]] == pytest.approx(expected, rel=1e-12)


def test_launches_are_counted_by_kernel() -> None:
    """Three passes, three repeated products, one forward core and three kernels of its backward; grouped products of 8
    experts launch one and 8 x 0.08 of one from inside."""
    backward = replace(CORE, backward=True)
    router = Operation(name="moe.router", forward=(BIG,), modules=("moe",))
    routed = Operation(name="moe.up", forward=(EXPERTS, PASS), modules=("moe",), input_grad=(backward, ROWS))
    plain = Operation(name="mlp", forward=(SMALL, CORE), input_grad=(_sum("all_reduce", 8),))
    found = _times(router, routed, plain)
    assert found.forward.kernels == pytest.approx(1 + (1 + 0.64) + 3 + 3 + 1)
    assert found.forward.experts_kernels == pytest.approx(1 + 0.64 + 3)
    assert (found.input_grad.kernels, found.input_grad.experts_kernels) == (3 + 1 + 1, 3 + 1)
    assert (found.weight_grad.kernels, found.recompute.kernels) == (0, 0)


@pytest.mark.parametrize(("communication", "cover", "shown"), [(2.0, 10.0, 0.3), (12.0, 10.0, 2.0), (1.0, 0.0, 1.0)])
def test_hidden_communication_shows_its_channels_or_what_sticks_out(
    communication: float, cover: float, shown: float
) -> None:
    assert exposed_s(communication, cover) == pytest.approx(shown)
    assert exposed_s(np.array([communication, 0.0]), cover) == pytest.approx([shown, 0.0])
    assert exposed_s(communication, np.array([cover, 1e3])) == pytest.approx([shown, 0.15 * communication])
    assert CHANNEL_SHARE == 0.15


def _hidden(found: Any, axis: str, total: float, cover: float) -> None:
    """A hidden collective shows what sticks out, and the rest is told."""
    shown = max(total - cover, 0.15 * total)
    assert found.parts[axis] == pytest.approx(shown, rel=1e-12)
    assert found.hidden[axis] == pytest.approx(total - shown, rel=1e-12)


@pytest.mark.parametrize("mega_bytes", [1, 400])
def test_a_border_hides_beside_the_product_after_or_before_it(mega_bytes: float) -> None:
    moved = _sum("all_gather", mega_bytes, hides="forward_gemm")
    enter, leave = Operation(name="enter", forward=(moved,)), Operation(name="leave", forward=(moved,))
    up, down = Operation(name="up", forward=(BIG, PASS)), Operation(name="down", forward=(SMALL,))
    norm = Operation(name="norm", forward=(ROWS,))
    # Entering: the layer after it has a product.
    _hidden(_times(norm, enter, up, norm).forward, "tp", _s(moved), _s(BIG) + _s(PASS))
    # Leaving: none after it, so the layer before.
    _hidden(_times(up, down, leave, norm).forward, "tp", _s(moved), _s(SMALL))
    _hidden(_times(up, down, leave).forward, "tp", _s(moved), _s(SMALL))
    _hidden(_times(down, leave).forward, "tp", _s(moved), _s(SMALL))
    # The first operation of a segment without a product after it has nothing to hide beside.
    _hidden(_times(leave, norm).forward, "tp", _s(moved), 0.0)


@pytest.mark.parametrize("mega_bytes", [1, 400])
def test_gradients_hide_beside_the_phase_that_they_name(mega_bytes: float) -> None:
    again, scatter = _sum("all_gather", mega_bytes, hides="input_grad"), _sum("reduce_scatter", mega_bytes, "ep",
                                                                               hides="weight_grad")  # fmt: skip
    enter = Operation(name="enter", input_grad=(again, scatter))
    up = Operation(name="up", forward=(BIG,), input_grad=(SMALL,), weight_grad=(PASS, ROWS))
    found = _times(enter, up)
    _hidden(found.input_grad, "tp", _s(again), _s(SMALL))
    _hidden(found.input_grad, "ep", _s(scatter), _s(PASS) + _s(ROWS))
    assert found.weight_grad.hidden == {}


@pytest.mark.parametrize("mega_bytes", [1, 400])
def test_attention_covers_only_what_stands_right_before_it(mega_bytes: float) -> None:
    ring = _sum("send", mega_bytes, "dp", hides="attention")
    before, core = Operation(name="ring", forward=(ring,)), Operation(name="core", forward=(CORE,))
    _hidden(_times(before, core).forward, "dp", _s(ring), _s(CORE))
    product = Operation(name="up", forward=(BIG,))
    norm = Operation(name="norm", forward=(ROWS,))
    _hidden(_times(product, before, norm).forward, "dp", _s(ring), _s(ROWS))


@pytest.mark.parametrize("mega_bytes", [1, 4000])
def test_exchanges_of_experts_share_all_compute_of_both_passes(mega_bytes: float) -> None:
    """Two exchanges each way: forward computes 2 products and the experts, backward 2 passes and one product for W."""
    exchange = _sum("all_to_all", mega_bytes, "ep", hides="experts")
    moe = Operation(name="moe", forward=(exchange, EXPERTS, _sum("all_reduce", 8)), input_grad=(exchange,))
    combine = Operation(name="moe.combine", forward=(exchange,), input_grad=(exchange,), weight_grad=(BIG,))
    other = Operation(name="up", forward=(BIG,), input_grad=(PASS,))
    found = _times(other, moe, combine, other)
    total, cover = 4 * _s(exchange), 3 * _s(BIG) + _s(EXPERTS) + 2 * _s(PASS)
    shown = max(total - cover, 0.15 * total)
    assert (shown > 0.15 * total) == (mega_bytes == 4000)
    for phase in (found.forward, found.input_grad):
        assert phase.parts["ep"] == pytest.approx(shown / 2, rel=1e-12)
        assert phase.hidden["ep"] == pytest.approx((total - shown) / 2, rel=1e-12)
    assert found.forward.parts["tp"] == pytest.approx(_s(_sum("all_reduce", 8)), rel=1e-12)
    # So do those that run again, and those of weight gradients.
    again = _times(replace(moe, weight_grad=(exchange,)), combine, other, policy=Policy(full=True))
    total, cover = 5 * _s(exchange), 2 * _s(BIG) + _s(EXPERTS) + _s(PASS)
    shown = max(total - cover, 0.15 * total)
    assert again.weight_grad.parts["ep"] == pytest.approx(shown / 5, rel=1e-12)
    assert again.recompute.parts["ep"] == pytest.approx(2 * shown / 5, rel=1e-12)
    # A column of strategies: where nothing is sent, nothing shows.
    column = Collective(kind="all_to_all", axis="ep", bytes=np.array([0.0, mega_bytes * 1e6]), hides="experts")
    many = _times(other, replace(moe, forward=(column, EXPERTS), input_grad=(column,)))
    alone = _times(other, replace(moe, forward=(exchange, EXPERTS), input_grad=(exchange,)))
    assert many.forward.parts["ep"][0] == 0
    assert many.forward.parts["ep"][1] == pytest.approx(alone.forward.parts["ep"], rel=1e-12)


def test_two_hidden_collectives_of_an_axis_share_their_cover() -> None:
    moved = _sum("all_gather", 200, hides="forward_gemm")
    found = _times(Operation(name="enter", forward=(moved, moved)), Operation(name="up", forward=(BIG,))).forward
    _hidden(found, "tp", 2 * _s(moved), _s(BIG))
    apart = _times(*(Operation(name="enter", forward=(moved,)), Operation(name="up", forward=(BIG,))) * 2).forward
    assert apart.parts["tp"] == pytest.approx(2 * max(_s(moved) - _s(BIG), 0.15 * _s(moved)), rel=1e-12)


def test_policies_are_timed_from_the_same_operations() -> None:
    a, b = Operation(name="a", forward=(BIG,), modules=("m",)), Operation(name="b", forward=(SMALL,), modules=("n",))
    layer = Segment(name="layer", operations=(a, b), input_bytes=1.0)
    end = Segment(name="end", operations=(a,), input_bytes=1.0, recomputable=False)
    policies = [Policy(), Policy(full=True), Policy(modules=frozenset({"n"}))]
    none, full, some = segment_times_by_policy([layer, end], policies, CLUSTER, GROUPS)
    assert [found["layer"].recompute.total_s for found in (none, full, some)] == pytest.approx(
        [0, _s(BIG) + _s(SMALL), _s(SMALL)])  # fmt: skip
    assert [found["end"].recompute.total_s for found in (none, full, some)] == [0, 0, 0]


def test_matrix_kernels_pay_the_power_limit_and_others_do_not() -> None:
    """On a warm device: the cold seconds, lengthened by what the limit of its generation costs."""
    fitted = load_device("a100-sxm-80gb")
    warm = replace(a100(), tdp_watts=200.0, units=72, clock_factor=1.1, kernels=fitted.kernels)
    slowdown = sustained_slowdown(
        fitted.kernels.constants["gemm.bf16"], PowerLimit(200.0, 72, 1.1), MEASURED_LIMITS["ampere"]
    )
    assert slowdown > 1.01
    operation = Operation(name="a", forward=(BIG, PASS, ROWS, CORE, EXPERTS))
    segment = Segment(name="s", operations=(operation,), input_bytes=1.0)
    found = segment_times([segment], Policy(), dgx(4, warm), GROUPS)["s"].forward.parts
    cold = replace(warm, kernels=warm.kernels.cold())
    expected = [float(each) for each in work_times_s([BIG, CORE, EXPERTS], dgx(4, cold), GROUPS)]
    assert [found[kind] for kind in ("gemm", "attention", "grouped_gemm")] == pytest.approx(
        [slowdown * seconds for seconds in expected], rel=1e-12)  # fmt: skip
    others = work_times_s([PASS, ROWS], dgx(4, warm), GROUPS)
    assert [found["pointwise"], found["lookup"]] == pytest.approx([float(each) for each in others], rel=1e-12)


@pytest.mark.parametrize(
    ("factor", "provenance", "held"),
    [(1.05, "inherited", True), (0.0, "inherited", False), (1.05, "measured", False), (0.0, "measured", False)],
)
def test_products_measured_on_the_device_itself_hold_its_own_limit(factor: float, provenance: str, held: bool) -> None:
    """A sibling's constants scaled by its own large products pay what the measured device pays, and no more."""
    fitted = load_device("a100-sxm-80gb")
    limits = {"tdp_watts": 200.0, "units": 72, "clock_factor": 1.1}
    warm = replace(a100(), products_factor=factor, kernels=replace(fitted.kernels, provenance=provenance), **limits)
    own = None if held else PowerLimit(200.0, 72, 1.1)
    slowdown = sustained_slowdown(fitted.kernels.constants["gemm.bf16"], own, MEASURED_LIMITS["ampere"])
    segment = Segment(name="s", operations=(Operation(name="a", forward=(BIG,)),), input_bytes=1.0)
    found = segment_times([segment], PLAIN, dgx(4, warm), GROUPS)["s"].forward.parts["gemm"]
    (cold,) = work_times_s([BIG], dgx(4, replace(warm, kernels=warm.kernels.cold())), GROUPS)
    assert found == pytest.approx(slowdown * float(cold), rel=1e-12)


def test_older_attention_kernels_are_slower_by_generation() -> None:
    """FlashAttention-2 is what ran on A100s, and 1.75 times as slow as what was measured on H100s."""
    for generation, slowdown in (("ampere", 1.0), ("hopper", 1.75)):
        cluster = dgx(4, replace(COLD, generation=generation))
        library, older = work_times_s([CORE, replace(CORE, kernel="flash2")], cluster, GROUPS)
        assert float(older) == pytest.approx(slowdown * float(library), rel=1e-12)
