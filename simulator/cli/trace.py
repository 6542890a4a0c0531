"""shardwise trace: one step as a file that Perfetto opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simulator.cli.options import case_of, case_options, integers, json_option, print_json


@click.command("trace")
@case_options
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE.json.gz",
              help="The file to write.")  # fmt: skip
@click.option("--ranks", metavar="N,N,...", help="Only these pipeline ranks (default: all).")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@json_option
def command(*, as_json: bool, out: Path, ranks: str | None, force: bool, **options: Any) -> None:
    """Write one step as a gzipped Chrome trace; https://ui.perfetto.dev opens it.

    \b
    Example:
      shardwise trace gpt3-175b dgx-a100 --nodes 16 --tp 8 --pp 16 --global-batch 64 -o step.json.gz
    """
    from simulator.estimate import estimate
    from simulator.io.trace import write_trace

    case = case_of(options)
    answer = estimate(case.model, case.cluster, case.run, case.strategy, framework=case.framework)
    count = write_trace(answer, out, ranks=integers(ranks, "--ranks") if ranks else (), force=force)
    if as_json:
        print_json({"file": str(out), **count, "step_time_s": answer.step_time_s})
        return
    click.echo(f"wrote {out}: {count['ranks']} pipeline ranks, {count['slices']:,} slices, {count['flows']:,} sends")
    click.echo("open it at https://ui.perfetto.dev; the file stays on this machine")
