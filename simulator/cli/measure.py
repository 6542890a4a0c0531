"""shardwise measure: real training steps on this machine, beside what its calibration predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simulator.cli.options import json_option, print_json

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("measure")
@click.argument("suite", default="full")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.csv", help="Write the rows here.")
@click.option("--machine", type=_FILE, metavar="FILE.toml",
              help="Predict from this machine file (default: calibrate now, into FILE.toml beside FILE.csv).")
@click.option("--rows", "given", type=_FILE, metavar="FILE.csv", help="Score these rows instead of measuring.")
@click.option("--rounds", type=click.IntRange(1, 100), default=7, show_default=True, help="Interleaved repeats.")
@click.option("--quick", is_flag=True, help="Calibrate with fewer sizes.")
@json_option
def command(*, suite: str, out: Path | None, machine: Path | None, given: Path | None, rounds: int, quick: bool,
            as_json: bool) -> None:  # fmt: skip
    """Run the training steps of SUITE and compare them with their predictions.

    SUITE is tiny, single, full or bf16, or gpu, which runs on one CUDA device and takes its own time for the figure.
    The primary figure is processor seconds summed over ranks, in fp32 with one thread per rank: it does not depend on
    what else the machine runs. Needs torch (`pip install shardwise[torch]`).

    \b
    Example:
      shardwise measure tiny --quick --rounds 3 --out here.csv
    """
    from simulator.measure.run import measure
    from simulator.measure.score import score, summary
    from simulator.measure.table import read_table, table_text
    from simulator.report.measured import measured_text

    if given is not None and machine is None:
        raise click.UsageError("--rows are scored with a --machine file.")
    if given is None and out is None and machine is None:
        raise click.UsageError("Missing option '--out' (or '--machine' with '--rows').")
    path = machine if machine is not None else _calibrated(out, suite, quick=quick)
    rows = read_table(given) if given else measure(suite, rounds=rounds, progress=_say)
    if out is not None:
        out.write_text(table_text(rows), encoding="utf-8")
        click.echo(f"wrote {out}", err=True)
    scored = score(rows, path)
    if as_json:
        print_json({"summary": summary(scored), "rows": [_row(entry) for entry in scored]})
    else:
        click.echo(measured_text(scored, summary(scored)))


def _calibrated(out: Path | None, suite: str, *, quick: bool) -> Path:
    from simulator.calibrate.machine import calibrate
    from simulator.calibrate.write import toml_text
    from simulator.measure.suite import device_for, suite_of

    path = (out or Path("machine.csv")).with_suffix(".toml")
    # fp32 first: what moves bytes is measured in it.
    dtypes = tuple(sorted({case.run.precision for case in suite_of(suite)}, reverse=True))
    _say(f"calibrating {' and '.join(dtypes)}")
    path.write_text(toml_text(calibrate(quick=quick, dtypes=dtypes, device=device_for(suite))), encoding="utf-8")
    click.echo(f"wrote {path}", err=True)
    return path


def _say(text: str) -> None:
    click.echo(text, err=True)


def _row(entry: Any) -> dict[str, Any]:
    """One case for --json."""
    measured, predicted = entry.measured, entry.predicted
    return {
        "case": measured.case, "class": entry.kind, "ranks": measured.ranks, "measured_cpu_s": measured.cpu_s,
        "spread": measured.spread_fraction, "predicted_cpu_s": predicted.cpu_s, "error": entry.error,
        "one_rate_error": entry.one_rate_error, "measured_wall_s": measured.wall_s,
        "predicted_wall_s": predicted.wall_s, "load": measured.load,
    }  # fmt: skip
