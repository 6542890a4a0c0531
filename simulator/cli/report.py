"""shardwise report: one HTML file to attach to a purchase request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simulator.cli.options import case_of, case_options


@click.command("report")
@case_options
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE.html",
              help="The file to write.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def command(*, out: Path, force: bool, **options: Any) -> None:
    """Write one self-contained HTML file: tables, pictures, assumptions and the source of every input.

    \b
    Example:
      shardwise report gpt3-175b dgx-a100 --nodes 128 --tp 8 --pp 8 --global-batch 1536 -o gpt3.html
    """
    from simulator.estimate import estimate
    from simulator.io.files import write_bytes
    from simulator.report.html import report_html

    case = case_of(options)
    answer = estimate(case.model, case.cluster, case.run, case.strategy, framework=case.framework)
    page = report_html(answer, model=case.model, cluster=case.cluster, strategy=case.strategy, said=case.said)
    write_bytes(out, page.encode(), force=force)
    click.echo(f"wrote {out} ({len(page):,} characters, no outside request)")
