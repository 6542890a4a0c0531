"""shardwise sweep: hundreds of cases from one file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulator.cli.options import json_option, print_json
from simulator.cli.quantities import Quantity

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from simulator.sweep.run import Progress, Swept


@click.command("sweep")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the results.")
@click.option("--resume", is_flag=True, help="Continue what an earlier run left there.")
@click.option("--allow-drift", is_flag=True, help="Resume even if the sweep, the catalogue or the version changed.")
@click.option("--workers", type=click.IntRange(0, 1024), help="Local processes (default: the cores; 0: none).")
@click.option("--dask", metavar="ADDRESS", help="Use the workers of a Dask scheduler.")
@click.option("--ray", metavar="ADDRESS", help='Use a Ray cluster ("local" starts one).')
@click.option("--timeout", type=Quantity("time"), help='Start no new points after this time ("10 min").')
@json_option
def command(
    *, file: Path, out: Path, workers: int | None, as_json: bool, **options: Any
) -> None:
    """Estimate every point of FILE: grids and zips over models, clusters, strategies and any catalogue field.

    The folder gets a journal (sweep.sqlite, readable at any moment), results.csv, and results.parquet where pyarrow is
    installed. A point that cannot be is a row with its reason. Ctrl-C keeps what was computed and exits 130.

    \b
    Example:
      shardwise sweep examples/sweep_nvlink.toml --out /tmp/nvlink
    """
    from simulator.sweep.run import sweep

    try:
        result = sweep(
            file, out, resume=options["resume"], allow_drift=options["allow_drift"], workers=workers,
            timeout_s=options["timeout"], executor=_executor(options["dask"], options["ray"]), progress=_progress(),
        )  # fmt: skip
    except KeyboardInterrupt:
        click.echo(f"\nwhat was computed is kept in {out}; --resume continues it", err=True)
        raise
    if as_json:
        print_json(_document(result))
    else:
        _show(result)


def _executor(dask: str | None, ray: str | None) -> Callable[[], Executor] | None:
    if dask and ray:
        raise click.UsageError("--dask and --ray are two executors: choose one.")
    if not dask and not ray:
        return None
    from simulator.sweep.executors import dask_executor, ray_executor

    return (lambda: dask_executor(str(dask))) if dask else (lambda: ray_executor(str(ray)))


def _progress() -> Callable[[Progress], None] | None:
    """A bar with the remaining time on a terminal's stderr; nothing when piped."""
    if not sys.stderr.isatty():
        return None
    from simulator.report.text import progress_line
    from simulator.units import format_time

    def show(now: Progress) -> None:
        left = "" if now.remaining_s is None else f"{format_time(now.remaining_s, 2)} left"
        line = progress_line(now.done, now.total, "points", left)
        click.echo(f"\r{line}        ", nl=now.done == now.total, err=True)

    return show


def _document(result: Swept) -> dict[str, Any]:
    return {
        "points": len(result.points), "resumed": result.resumed, "complete": result.complete,
        "counts": result.counts(), "wall_s": result.wall_s, "files": [str(path) for path in result.files],
    }  # fmt: skip


def _show(result: Swept) -> None:
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(result.counts().items()))
    click.echo(f"{len(result.points):,} points: {counts}; {result.resumed:,} were there already")
    fitting = [row for row in result.rows if row and row.get("fits")]
    if fitting:
        from simulator.units import format_time

        best = min(fitting, key=lambda row: row["step_time_s"])
        click.echo(f"{len(fitting):,} fit in memory; the quickest step takes {format_time(best['step_time_s'])}")
    for path in result.files:
        click.echo(f"wrote {path}")
