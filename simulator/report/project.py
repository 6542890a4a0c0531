"""A training project as text."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.project.training import Project
from simulator.report.text import rendered, table
from simulator.units import format_bytes, format_count, format_percent, format_time, format_usd


def project_text(answer: Project, said: Sequence[str] = ()) -> str:
    """A project as a person reads it: time, money, energy, where wall-clock time goes, batch and tokens."""
    step = answer.estimate
    usd = format_usd(answer.usd) if answer.usd is not None else "no price known (--price)"
    if answer.energy_kwh is None or answer.carbon_kg is None:
        energy = "no power known (--power)"
    else:
        energy = f"{answer.energy_kwh / 1e3:,.4g} MWh, {answer.carbon_kg / 1e3:,.4g} t CO2e"
    spares = f" and {answer.spare_devices} spare" if answer.spare_devices else ""
    lines = [
        f"{step.model} on {answer.devices}{spares} devices of {step.cluster} ({step.framework})",
        (
            f"{format_count(answer.tokens)} tokens in {answer.steps:,} steps of {format_time(step.step_time_s)}, "
            f"{format_count(answer.batch_tokens)} tokens each, MFU {format_percent(step.mfu)}"
        ),
        "",
        f"time      {answer.days:,.4g} days with failures, {answer.ideal_days:,.4g} without",
        f"devices   {format_count(answer.device_hours)} device hours",
        f"cost      {usd}",
        f"energy    {energy}",
        "",
    ]
    return rendered([*lines, _goodput_table(answer), *_outlook(answer), "", *said, *answer.notes])


def _goodput_table(answer: Project) -> object:
    shares = answer.goodput
    rows = [
        (name, format_percent(share), format_time(share * answer.days * 86400.0))
        for name, share in (
            ("useful", shares.useful_fraction), ("saving", shares.saving_fraction),
            ("redoing lost work", shares.redoing_fraction),
            ("detecting and restarting", shares.recovering_fraction), ("waiting for a node", shares.waiting_fraction),
            ("waiting for stragglers", shares.straggling_fraction),
        )
    ]  # fmt: skip
    return table("Wall-clock time", ("part", "share", "time"), rows)


def _outlook(answer: Project) -> list[str]:
    saved, shares = answer.checkpoint, answer.goodput
    laws = ", ".join(f"{format_count(tokens)} ({name})" for name, tokens in answer.optimal_tokens.items())
    return [
        f"failures    one per {format_time(shares.job_mtbf_s)} of the job",
        (
            f"checkpoint  {format_bytes(saved.size_bytes)} by {saved.writers} devices in {format_time(saved.write_s)}, "
            f"blocking {format_time(saved.blocking_s)}, after every {format_time(shares.interval_s)} of work"
        ),
        f"tokens      compute-optimal: {laws}",
        (
            f"batch       critical at about {format_count(answer.critical_batch_tokens)} tokens (final loss "
            f"{answer.loss_nats:.3g}); dp up to {answer.largest_useful_dp} is useful at this micro-batch"
        ),
    ]
