"""What a plan minimises: dollars by hand and against every strategy's project, and what given devices make the same."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import simulator as sim
from simulator import catalog
from simulator.errors import InputError
from simulator.plan.limits import Limits
from simulator.plan.space import build_space
from simulator.project.training import Conditions
from simulator.units import format_usd
from tests.support import a100, dgx, gpt, mixture

RUN = sim.Run(global_batch=16, seq_len=512)
FRAGILE = Conditions(price_usd_per_device_hour=2.0, device_mtbf_s=2e4, storage_bytes_per_s=None, restart_s=1.0,
                     detection_s=1.0)  # fmt: skip
"""Devices that fail every few hours: saving often, and so how many write, decides."""
NARROW = {
    "forbid": {"context_kind": ("ulysses", "all-gather"), "sequence_parallel": (False,), "recompute": ("full",)},
    "within": {"cp": (1, 1), "micro_batch": (1, 2), "vp": (1, 2), "etp": (1, 1)},
    "allow": {"zero": (0, 1)}, "fix": {"split": "even"},
}  # fmt: skip


def _cluster(memory_bytes: float = 80e9, devices: int = 8):
    whole = dgx(1, replace(a100(), memory_bytes=memory_bytes))
    return replace(whole, devices_per_node=devices, tiers=(replace(whole.tiers[0], size=devices),))


def test_dollars_are_steps_times_seconds_times_devices_times_price() -> None:
    best = sim.plan(gpt(1024, 8, 16), _cluster(), RUN, objective="dollars", tokens=1e9, conditions=FRAGILE,
                    limit=1, **NARROW)[0]  # fmt: skip
    paid = best.bill
    assert paid.steps == math.ceil(1e9 / (16 * 512))
    assert paid.ideal_days == pytest.approx(paid.steps * best.estimate.step_time_s / 86400)
    assert paid.usd == pytest.approx(paid.ideal_days / paid.goodput.useful_fraction * 24 * 8 * 2.0)


@pytest.mark.parametrize("model", [gpt(1024, 8, 16, seq_len=512), mixture(512, 4, 8, experts=4, expert_hidden=1024)])
def test_the_cheapest_is_the_cheapest_of_every_strategys_project(model) -> None:
    cluster = _cluster(devices=4)
    space = build_space(model, cluster, RUN, catalog.load_framework(RUN.framework), Limits(**NARROW))
    distinct = {}
    for strategy, _, _ in space.strategies():
        found = sim.project(model, cluster, RUN, strategy, tokens=1e9, conditions=FRAGILE)
        if found.estimate.fits:
            # Placements that give the same time and memory are one entry of a plan.
            same = (found.estimate.step_time_s, found.estimate.peak_memory_bytes, found.checkpoint.writers)
            distinct[same] = (found.usd, found.estimate.step_time_s)
    paid = sorted(distinct.values())
    plan = sim.plan(model, cluster, RUN, objective="dollars", tokens=1e9, conditions=FRAGILE, limit=4, **NARROW)
    assert [entry.bill.usd for entry in plan] == pytest.approx([usd for usd, _ in paid[:4]], rel=1e-9)
    assert plan.proof.optimal
    assert plan[1].why.startswith(f"+{format_usd(plan[1].bill.usd - plan[0].bill.usd)}")
    soonest = sim.plan(model, cluster, RUN, objective="days", tokens=1e9, conditions=FRAGILE, limit=4, **NARROW)
    assert [entry.strategy for entry in soonest] == [entry.strategy for entry in plan]
    by_time = [usd for usd, _ in sorted(paid, key=lambda pair: pair[1])]
    assert by_time != [usd for usd, _ in paid], "saving decides nothing here, so this would test the step time again"


def test_objectives_that_follow_the_step_time_say_so_and_give_the_same() -> None:
    model, cluster = gpt(1024, 8, 16), _cluster(devices=4)
    first, *others = (
        sim.plan(model, cluster, RUN, objective=name, limit=3, **NARROW)
        for name in ("step_time", "tokens_per_s", "tokens_per_s_per_device")
    )
    assert all([entry.strategy for entry in other] == [entry.strategy for entry in first] for other in others)
    assert all("the least step time" in other.objective_words for other in others)
    assert first[0].bill is None
    assert others[0].to_dict()["objective_words"] == others[0].objective_words


def test_a_plan_with_tokens_carries_the_same_bill_as_its_project() -> None:
    model, cluster = gpt(1024, 8, 16), _cluster(devices=4)
    best = sim.plan(model, cluster, RUN, tokens=1e9, limit=1, **NARROW)
    whole = sim.project(model, cluster, RUN, best[0].strategy, tokens=1e9)
    assert best[0].bill.days == whole.days
    assert best[0].bill.usd is whole.usd is None
    assert best.to_dict()["strategies"][0]["bill"]["days"] == whole.days


def test_what_dollars_need_and_what_is_no_objective_is_said_at_once() -> None:
    model, cluster = gpt(1024, 8, 16), _cluster()
    with pytest.raises(InputError, match=r"no price of a device hour.*2\.50 USD/h"):
        sim.plan(model, cluster, RUN, objective="dollars", tokens=1e9)
    with pytest.raises(InputError, match="Did you mean dollars") as caught:
        sim.plan(model, cluster, RUN, objective="dolars", limit=0)
    assert len(caught.value.problems) == 2
    with pytest.raises(InputError, match="tokens"):
        sim.plan(model, cluster, RUN, tokens=0.0)
