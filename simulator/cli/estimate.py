"""shardwise estimate: what one training step costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simulator.cli.fabric import fabric_of, fabric_options
from simulator.cli.options import case_of, case_options, draw, json_option, plot_option, print_json


@click.command("estimate")
@case_options
@fabric_options
@click.option("--why", metavar="TERM", help="Expand one number into its formula, values and source.")
@plot_option("Draw it: time, memory, or what --picture says.")
@click.option("--picture", type=click.Choice(("overview", "memory", "waterfall", "timeline", "topology")),
              default="overview", show_default=True, help="What --plot draws.")  # fmt: skip
@json_option
def command(
    *, as_json: bool, why: str | None, plot: Path | None, picture: str, **options: Any
) -> None:
    """Estimate one training step of MODEL on CLUSTER under one strategy.

    \b
    Example:
      shardwise estimate gpt3-175b dgx-a100 --nodes 128 --tp 8 --pp 8 --micro-batch 1 --global-batch 1536
    """
    from simulator.estimate import estimate
    from simulator.explain import explain_term
    from simulator.report.text import estimate_text, term_text

    case = case_of(options)
    cluster, changed = fabric_of(case.cluster, options)
    said = (*case.said, *changed)
    answer = estimate(case.model, cluster, case.run, case.strategy, framework=case.framework)
    draw(plot, lambda: cluster.plot("topology", answer=answer) if picture == "topology" else answer.plot(picture))
    if why:
        term = explain_term(answer, why)
        if as_json:
            print_json(term)
        else:
            click.echo(term_text(term))
        return
    if as_json:
        print_json({**answer.to_dict(), "notes": [*said, *answer.notes]})
        return
    click.echo(estimate_text(answer, said=said))
