"""shardwise report: one HTML file to attach to a purchase request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from simulator.cli.options import Case, case_of, case_options
from simulator.cli.quantities import Quantity


@click.command("report")
@case_options
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE.html",
              help="The file to write.")  # fmt: skip
@click.option("--tokens", type=Quantity("count"), help='Add the whole run: days, dollars, energy of so many ("300B").')
@click.option("--price", type=Quantity("price"), help='With --tokens: price of a device hour ("2.50 USD/h").')
@click.option("--alternatives", type=click.IntRange(1, 50), metavar="N", help="Add a plan: the N best strategies.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def command(*, out: Path, alternatives: int | None, force: bool, **options: Any) -> None:
    """Write one self-contained HTML file: tables, pictures, assumptions and the source of every input.

    \b
    Example:
      shardwise report gpt3-175b dgx-a100 --nodes 128 --tp 8 --pp 8 --global-batch 1536 -o gpt3.html
    """
    from simulator.estimate import estimate
    from simulator.io.files import write_bytes
    from simulator.report.html import report_html

    if options["price"] is not None and options["tokens"] is None:
        raise click.UsageError("--price needs --tokens: how long is the run?")
    case = case_of(options)
    answer = estimate(case.model, case.cluster, case.run, case.strategy, framework=case.framework)
    extra = []
    if options["tokens"] is not None:
        extra.append(("The whole run", _whole_run(case, options)))
    if alternatives is not None:
        extra.append(("What else could be done", _plan(case, alternatives)))
    page = report_html(
        answer, model=case.model, cluster=case.cluster, strategy=case.strategy, said=case.said, extra=extra
    )
    write_bytes(out, page.encode(), force=force)
    click.echo(f"wrote {out} ({len(page):,} characters, no outside request)")


def _whole_run(case: Case, options: Mapping[str, Any]) -> str:
    from simulator.project.training import Conditions, project, with_conditions
    from simulator.report.project import project_text

    conditions = with_conditions(Conditions(), {"price_usd_per_device_hour": options["price"]})
    answer = project(case.model, case.cluster, case.run, case.strategy, tokens=options["tokens"], conditions=conditions,
                     framework=case.framework)  # fmt: skip
    return project_text(answer)


def _plan(case: Case, limit: int) -> str:
    from simulator.plan.planner import plan
    from simulator.report.plan import plan_text

    return plan_text(plan(case.model, case.cluster, case.run, limit=limit, framework=case.framework))
