"""model + cluster + run -> the best strategy of the whole legal space, proven."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from simulator import catalog
from simulator.cluster.members import as_slowest, is_unequal, plain_if_equal
from simulator.errors import Complaints, Infeasible, did_you_mean
from simulator.plan.limits import Limits
from simulator.plan.money import Ledger, cheapest
from simulator.plan.objectives import OBJECTIVES
from simulator.plan.question import Question
from simulator.plan.result import Plan, Planned, Proof, binds, why_lost
from simulator.plan.search import Found, Searched, search
from simulator.plan.space import Space, build_space
from simulator.plan.ties import TIE_PROBABILITY, faster_probability
from simulator.plan.unequal import plan_on_unequal_nodes
from simulator.project.training import Conditions, check_conditions, price_of
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run

FOREVER_S = 1e9
MEMORY = "does not fit in memory"
BILLED = ("days", "dollars")
"""Objectives that a bill decides: failures and checkpoints included."""


def plan(
    model: ModelSpec,
    cluster: Cluster,
    run: Run,
    *,
    objective: str = "tokens_per_s",
    limit: int = 10,
    fix: Mapping[str, Any] | None = None,
    allow: Mapping[str, Sequence[Any]] | None = None,
    within: Mapping[str, tuple[int, int]] | None = None,
    forbid: Mapping[str, Sequence[Any]] | None = None,
    time_limit_s: float = FOREVER_S,
    tokens: float | None = None,
    conditions: Conditions | None = None,
    framework: Framework | None = None,
) -> Plan:
    """The `limit` best strategies of every legal one on all devices of the cluster.

    `objective`: "tokens_per_s", "step_time" and "tokens_per_s_per_device" (the same order, the devices being given),
    "memory" (least peak, then fastest), "days" or "dollars" (to train `tokens`, 20 per parameter where not given, under
    the `conditions` of `project`: price, failures). With `tokens` or `conditions` every entry carries its bill. `fix`
    {"tp": 8}, `allow` {"schedule": ("1f1b", "zbv")}, `within` {"tp": (1, 8)}, `forbid` {"recompute": ("full",)} narrow
    the space. With a time limit [s] the best so far, with its gap.

    On unequal nodes strategies are costed with each stage on its own nodes (`plan/unequal.py`), without a proof.

    Raises InputError for bad limits and for dollars without a price, Infeasible when nothing is legal or nothing fits,
    with the reasons counted.
    """
    started = time.monotonic()
    _check(objective, limit, cluster, tokens, conditions)
    space, question, unequal = asked_space(model, cluster, run, fix=fix, allow=allow, within=within, forbid=forbid,
                                           framework=framework)  # fmt: skip
    billed = objective in BILLED or tokens is not None or conditions is not None
    if is_unequal(cluster := plain_if_equal(cluster)):
        limits = Limits(fix=fix or {}, allow=allow or {}, within=within or {}, forbid=forbid or {})
        question = replace(question, cluster=cluster)
        return plan_on_unequal_nodes(
            plan, _entries, question, limits, objective=objective, limit=limit, time_limit_s=time_limit_s,
            ledger=Ledger(question, tokens, conditions) if billed else None,
        )  # fmt: skip
    ledger = Ledger(question, tokens, conditions) if billed else None

    def searching(asked: int, within_s: float) -> Searched:
        return search(space, question, OBJECTIVES[objective], limit=asked, time_limit_s=within_s)

    if ledger is not None and objective in BILLED:
        least = ledger.least_stretch_factor(space)
        searched = cheapest(searching, ledger, least, limit=limit, time_limit_s=time_limit_s)
    else:
        searched = searching(limit, time_limit_s)
    proof, rejected = _proven(space, searched, cluster.devices)
    return Plan(
        model=model.name, cluster=cluster.name, devices=cluster.devices, objective=objective,
        objective_words=OBJECTIVES[objective].words, entries=_entries(searched.found, ledger), proof=proof,
        rejected=rejected, notes=unequal, wall_s=time.monotonic() - started,
    )  # fmt: skip


def _proven(space: Space, searched: Searched, devices: int) -> tuple[Proof, dict[str, int]]:
    """How far a search went, and what was refused by reason. Raises Infeasible when it found nothing."""
    rejected = dict(_by_count({**space.rejected, **({MEMORY: searched.unfit} if searched.unfit else {})}))
    if not searched.found:
        raise Infeasible([f"No strategy of {space.considered:,} is legal and fits {devices} devices.",
                          *(f"{count:,}: {reason}" for reason, count in rejected.items())])  # fmt: skip
    proof = Proof(considered=space.considered, legal=space.legal, fits=space.legal - searched.unfit,
                  bounded=space.legal if searched.complete else searched.scored, scored=searched.scored,
                  refined=searched.refined, engine_runs=searched.engine_runs, gap=searched.gap)  # fmt: skip
    return proof, rejected


def asked_space(
    model: ModelSpec,
    cluster: Cluster,
    run: Run,
    *,
    fix: Mapping[str, Any] | None = None,
    allow: Mapping[str, Sequence[Any]] | None = None,
    within: Mapping[str, tuple[int, int]] | None = None,
    forbid: Mapping[str, Sequence[Any]] | None = None,
    framework: Framework | None = None,
) -> tuple[Space, Question, tuple[str, ...]]:
    """The legal space of a question within limits, the question with its defaults filled in, and what was taken from
    unequal nodes, in words. Raises InputError for bad limits.
    """
    software = framework if framework is not None else catalog.load_framework(run.framework)
    run = replace(run, seq_len=run.seq_len or model.seq_len)
    cluster, unequal = as_slowest(cluster, run.precision)
    limits = Limits(fix=fix or {}, allow=allow or {}, within=within or {}, forbid=forbid or {})
    question = Question(model=model, cluster=cluster, run=run, framework=software)
    return build_space(model, cluster, run, software, limits), question, unequal


def _by_count(rejected: Mapping[str, int]) -> list[tuple[str, int]]:
    counted = [(reason, count) for reason, count in rejected.items() if count]
    return sorted(counted, key=lambda item: (-item[1], item[0]))


def _check(
    objective: str, limit: int, cluster: Cluster, tokens: float | None, conditions: Conditions | None
) -> None:
    complaints = Complaints()
    complaints.require(objective in OBJECTIVES, f"objective {objective!r} is unknown.", where="objective",
                       hint=did_you_mean(objective, OBJECTIVES))  # fmt: skip
    complaints.require(limit >= 1, f"limit({limit}) must be at least 1.", where="limit")
    if objective == "dollars" and price_of(cluster, conditions or Conditions()) is None:
        complaints.add(f"no price of a device hour of {cluster.name} is known.", where="--price",
                       hint='Give one, as in "2.50 USD/h".')  # fmt: skip
    complaints.raise_if_any()
    check_conditions(conditions or Conditions(), tokens)


def _entries(found: Sequence[Found], ledger: Ledger | None) -> tuple[Planned, ...]:
    best = found[0].estimate
    timed = len(found[0].key) == 1
    entries: list[Planned] = []
    for each in found:
        step = each.estimate
        chance = faster_probability(step.step_time_s, best.step_time_s)
        paid = ledger.bill(each.strategy, step.step_time_s) if ledger is not None else None
        entries.append(Planned(
            strategy=each.strategy, estimate=step, bound_s=each.bound_s, faster_probability=chance,
            tied=each is found[0] or (timed and chance >= TIE_PROBABILITY), binds=binds(step), also=each.also,
            why=why_lost(step, best, paid, entries[0].bill, timed=timed) if entries else binds(best), bill=paid,
        ))  # fmt: skip
    return tuple(entries)
