"""shardwise timeline: one step, rank by rank, as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simulator.cli.options import case_of, case_options, draw, json_option, plot_option, print_json


@click.command("timeline")
@case_options
@plot_option("Draw the tasks of every rank with bubbles and communication, and memory beneath.")
@click.option("--until", "until_s", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
              help="Draw the step up to here (default: all of it, or its opening and end).")  # fmt: skip
@json_option
def command(*, as_json: bool, plot: Path | None, until_s: float | None, **options: Any) -> None:
    """Show what each pipeline rank does in one step: busy, waiting, exposed communication, memory at its peak.

    \b
    Example:
      shardwise timeline gpt3-175b dgx-a100 --nodes 16 --tp 8 --pp 16 --global-batch 64 --plot step.svg
    """
    from simulator.estimate import estimate
    from simulator.report.ranks import timeline_dict, timeline_text

    case = case_of(options)
    answer = estimate(case.model, case.cluster, case.run, case.strategy, framework=case.framework)
    if as_json:
        print_json(timeline_dict(answer))
    else:
        click.echo(timeline_text(answer))
    draw(plot, lambda: answer.plot("timeline", until_s=until_s or 0.0))
