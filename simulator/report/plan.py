"""A plan as a person acts on it: the best, the runners-up and why they lost, what was refused, the proof."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulator.plan.result import binds
from simulator.report.text import columns_for, recompute_words, rendered, table
from simulator.units import format_bytes, format_count, format_percent, format_time, format_usd

if TYPE_CHECKING:
    from simulator.plan.compare import Comparison
    from simulator.plan.result import Plan, Planned
    from simulator.project.training import Bill
    from simulator.result import Estimate
    from simulator.sensitivity import Sensitivity
    from simulator.spec.strategy import Strategy

_SINGLE = re.compile(r"(?<! ) (?! )")


def strategy_words(strategy: Strategy) -> str:
    """The degrees that are not 1 and the options that matter, on one line."""
    words = [f"{name} {getattr(strategy, name)}" for name in ("tp", "cp", "pp", "dp", "ep", "etp", "vp")
             if getattr(strategy, name) > 1]  # fmt: skip
    words += [f"micro-batch {strategy.micro_batch}", strategy.schedule if strategy.pp > 1 else ""]
    words += [f"zero {strategy.zero}" if strategy.zero else ""]
    words.append(recompute_words(strategy.recompute, strategy.recompute_layers))
    words.append(strategy.context_kind if strategy.cp > 1 else "")
    words.append("" if strategy.sequence_parallel or strategy.tp == 1 else "no sequence parallelism")
    words.append(f"layers {','.join(map(str, strategy.layers_per_stage))}" if strategy.layers_per_stage else "")
    words.append("" if strategy.order == type(strategy)().order else "-".join(strategy.order))
    return "  ".join(word for word in words if word)


def plan_text(plan: Plan) -> str:
    """The best strategy, the runners-up, the proof, and what was refused."""
    best, proof = plan[0], plan.proof
    found = best.estimate
    head = [
        f"{plan.model} on {plan.devices} devices of {plan.cluster}",
        f"objective {plan.objective}: {plan.objective_words}",
        "",
        hanging("best        ", strategy_words(best.strategy)),
        (f"step time   {format_time(found.step_time_s)}, likely {format_time(found.step_time_low_s)} to "
         f"{format_time(found.step_time_high_s)}; {format_count(found.tokens_per_s)} tokens/s, "
         f"MFU {format_percent(found.mfu)}"),
        (f"memory      {format_bytes(found.peak_memory_bytes)} of {format_bytes(found.device_memory_bytes)}, "
         f"{format_bytes(found.device_memory_bytes - found.peak_memory_bytes)} free "
         f"({format_percent(found.fits_confidence, 2)} sure to fit)"),
        hanging("time goes   ", f"{best.binds}{_rank_words(found, best.strategy.pp)}"),
        *([hanging("training    ", bill_words(best.bill))] if best.bill is not None else []),
        "",
    ]  # fmt: skip
    verdict = "proven best" if proof.optimal else f"not proven: up to {format_percent(proof.gap)} better may exist"
    bounded = "all bounded" if proof.bounded == proof.legal else f"only {proof.bounded:,} looked at in the time given"
    tail = [
        hanging("", f"{verdict}: {proof.considered:,} considered, {proof.legal:,} legal, {proof.fits:,} fit, "
                f"{bounded}, {proof.refined:,} bounded again, {proof.engine_runs:,} run, in {plan.wall_s:.2f} s"),
        *(f"- {count:,} refused: {reason}" for reason, count in plan.rejected.items()),
        *(f"- {note}" for note in plan.notes),
    ]
    return rendered(["\n".join(head), *_runners(plan.entries), "", *tail])


def hanging(head: str, words: str) -> str:
    """A line that starts with `head`; what does not fit goes on beneath its words. Words two spaces apart (fields of a
    strategy) are parted there and nowhere else.
    """
    held = _SINGLE.sub("\0", words) if "  " in words else words
    lines = textwrap.fill(held, columns_for(), initial_indent=head, subsequent_indent=" " * len(head),
                          break_on_hyphens=False)  # fmt: skip
    return lines.replace("\0", " ")


def bill_words(bill: Bill) -> str:
    """Tokens, days, device hours and dollars on one line."""
    cost = format_usd(bill.usd) if bill.usd is not None else "no price known (--price)"
    return (f"{format_count(bill.tokens)} tokens in {bill.days:,.4g} days with failures, "
            f"{format_count(bill.device_hours)} device hours, {cost}")  # fmt: skip


def _rank_words(step: Estimate, pp: int) -> str:
    """Whose time it is, where a pipeline has several ranks."""
    return f"; of pipeline rank {step.time.rank} (0 to {pp - 1}), which ends last" if pp > 1 else ""


def _runners(entries: Sequence[Planned]) -> list[str]:
    """Each strategy with its time and memory, and beneath it what binds it and what it loses."""
    lines = ["Best first, what binds each, and what it loses to the best", ""]
    for number, entry in enumerate(entries, start=1):
        step = entry.estimate
        sizes = f"{format_time(step.step_time_s):>9}  {format_bytes(step.peak_memory_bytes):>9}"
        mark = f"tie {entry.faster_probability:.0%}" if entry.tied and number > 1 else ""
        head = f"{number:>3}  {sizes}  {mark:<7}  "
        lines.append(hanging(head, strategy_words(entry.strategy)))
        blank = " " * len(head)
        if entry.also:
            lines.append(hanging(blank, f"or {', '.join('-'.join(order) for order in entry.also)}, which is the same"))
        lines.append(hanging(blank, f"binds: {entry.binds}"))
        if number > 1:
            lines.append(hanging(blank, f"loses: {entry.why}"))
    if any(entry.tied for entry in entries[1:]):
        lines += ["", hanging("tie: ", "the chance that it is the faster one when measured, by published runs that "
                              "competed; among ties take the simplest")]  # fmt: skip
    return lines


def comparison_text(answer: Comparison) -> str:
    """What differs between two estimates, part by part."""
    rows = [(name, format_time(s)) for name, s in answer.time_s.items() if s]
    sizes = [(name, format_bytes(size)) for name, size in answer.memory_bytes.items() if size]
    fields = [(name, str(one), str(other)) for name, (one, other) in answer.strategy.items()]
    head = (f"the other takes {answer.step_time_ratio:.3f} times as long "
            f"({format_time(answer.one['step_time_s'])} -> {format_time(answer.other['step_time_s'])})")  # fmt: skip
    return rendered([
        head, table("Strategy", ("field", "one", "other"), fields),
        table("Time, other less one", ("part", "time"), rows),
        table("Memory, other less one", ("part", "bytes"), sizes),
    ])  # fmt: skip


def sensitivity_text(base: Estimate, rows: Sequence[Sensitivity]) -> str:
    """What binds a step, and changes, the most useful first; where it does not fit, those that make it fit first."""
    lines = [
        (row.change, row.kind, f"{row.gain_fraction:+.2%}", format_time(row.step_time_s),
         format_bytes(row.peak_memory_bytes), "" if row.fits else "does not fit")
        for row in sorted(rows, key=lambda row: not base.fits and not row.fits)
    ]  # fmt: skip
    room = base.device_memory_bytes - base.peak_memory_bytes
    verdict = f"{format_bytes(room)} to spare" if base.fits else f"does not fit by {format_bytes(-room)}"
    pp = base.strategy["pp"]
    return rendered([
        f"step time   {format_time(base.step_time_s)}",
        hanging("binds       ", f"{binds(base)}{_rank_words(base, pp)}"),
        f"memory      {format_bytes(base.peak_memory_bytes)} of {format_bytes(base.device_memory_bytes)}: {verdict}",
        "",
        table("What one change would buy", ("change", "of", "gain", "step", "memory", ""), lines),
    ])  # fmt: skip
