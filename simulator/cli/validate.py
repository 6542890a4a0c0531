"""shardwise validate: predictions beside published runs, measured kernels, or torch's own counts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from simulator.cli.options import draw, json_option, plot_option, print_json

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("validate")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--kernels", is_flag=True, help="TABLEs are measured kernels (gemm, attention, moe, nccl, collectives).")
@click.option("--counts", is_flag=True, help="Compare counts with torch's own; arguments are models (default all).")
@click.option("--min-flops", type=float, default=2e9, show_default=True, help="Kernels: only work of at least this.")
@click.option("--min-bytes", type=float, default=1e6, show_default=True, help="Collectives: only sizes from this.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write REPORT.md or counts.csv here.")
@plot_option("Runs: draw predicted against measured step times.")
@json_option
def command(
    *, tables: tuple[str, ...], kernels: bool, counts: bool, min_flops: float, min_bytes: float, out: Path | None,
    plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Compare predictions with what was measured.

    TABLEs are CSV files of published runs (validation/runs), scored row by row, or of steps that `shardwise measure`
    timed, each beside the machine.toml that predicts it. With --kernels they are tables of measured kernels; with
    --counts our counts are compared with torch's.
    """
    if plot is not None and (kernels or counts):
        raise click.UsageError("--plot draws published runs; leave --kernels and --counts away.")
    if kernels and counts:
        raise click.UsageError("--kernels and --counts are two different comparisons: choose one.")
    if counts:
        _counts(tables, out, as_json=as_json)
    elif not tables:
        raise click.UsageError("Missing argument 'TABLE': for example validation/runs/korthikanti.csv.")
    elif all(_has_own_machine(table) for table in tables):
        _measured(tables, as_json=as_json)
    elif kernels:
        _kernels(tables, min_flops, min_bytes, as_json=as_json)
    else:
        _runs(tables, out, plot, as_json=as_json)


def _has_own_machine(table: str) -> bool:
    from simulator.measure.sets import has_own_machine

    return has_own_machine(Path(table))


def _runs(tables: tuple[str, ...], out: Path | None, plot: Path | None, *, as_json: bool) -> None:
    from simulator.report.plot_curves import measured_picture
    from simulator.report.validation import scores_text
    from simulator.validate.facts import CatalogFacts, estimator, known_reasons, known_residuals
    from simulator.validate.runs import read_runs
    from simulator.validate.score import score

    rows = read_runs([Path(table) for table in tables])
    facts = CatalogFacts()
    scores = score(rows, estimator, facts, residuals=known_residuals(), progress=_progress(len(rows)))
    if out is not None:
        from simulator.validate.newcomer import newcomers
        from simulator.validate.report import write_report

        fresh = newcomers(rows, scores.rows, estimator, facts)
        path = write_report(scores, out, reasons=known_reasons(), newcomers=fresh, own_machine=_own_machine(out))
        click.echo(f"wrote {path}", err=True)
    draw(plot, lambda: measured_picture(scores.to_json()["rows"]))
    if as_json:
        print_json(scores.to_json())
    else:
        click.echo(scores_text(scores.to_json()))


def _own_machine(out: Path) -> str:
    """What was measured on our own machines (out/measured), in summary; every case goes into out/measured/REPORT.md."""
    from simulator.measure.sets import apart, read_sets
    from simulator.report.measured import sets_text

    sets = read_sets(out / "measured")
    if not sets:
        return ""
    title = "# Training steps measured on our own machine\n\nREADME.md says what the columns mean.\n\n"
    (out / "measured" / "REPORT.md").write_text(title + sets_text(sets, apart(sets), cases=True), encoding="utf-8")
    return sets_text(sets, apart(sets), cases=False)


def _measured(tables: Sequence[str], *, as_json: bool) -> None:
    """Measured steps, each file with the machine.toml beside it."""
    from simulator.measure.sets import read_set
    from simulator.report.measured import measured_text

    sets = [read_set(Path(table)) for table in tables]
    if as_json:
        print_json({"sets": [{"name": found.name, "summary": found.summary} for found in sets]})
    for found in [] if as_json else sets:
        click.echo(measured_text(found.scored, found.summary))


def _progress(total: int) -> Callable[[int], None] | None:
    """A bar on a terminal's stderr; nothing when piped."""
    if not sys.stderr.isatty() or total < 50:
        return None
    from simulator.report.text import progress_line

    def show(done: int) -> None:
        click.echo(f"\r{progress_line(done, total, 'runs')}", nl=done == total, err=True)

    return show


def _kernels(tables: tuple[str, ...], min_flops: float, min_bytes: float, *, as_json: bool) -> None:
    from simulator.report.validation import kernels_text
    from simulator.validate.kernels import score_tables

    rows = score_tables([Path(table) for table in tables], min_flops=min_flops, min_bytes=min_bytes)
    if as_json:
        print_json({"rows": rows})
    else:
        click.echo(kernels_text(rows))


def _counts(models: tuple[str, ...], out: Path | None, *, as_json: bool) -> None:
    from simulator.report.validation import counts_text
    from simulator.validate.counted import write_counts
    from simulator.validate.torch_counts import count_rows

    if models and out is not None:
        raise click.UsageError("--counts --out writes the counts of every model: name none.")
    rows = count_rows(models)
    if out is not None:
        click.echo(f"wrote {write_counts(rows, out)}", err=True)
    if as_json:
        print_json({"rows": rows})
    else:
        click.echo(counts_text(rows))
