"""shardwise calibrate: measure this machine's kernels and collectives."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.options import json_option, print_json


@click.command("calibrate")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
              help="The processor and gloo, or the kernels of one GPU.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.toml",
              help="Write the machine file here; every command takes it for a cluster.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Fewer sizes and rounds: under a minute on an idle machine.")
@click.option("--ranks", type=int, default=4, show_default=True, help="Most ranks to measure collectives on.")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(["fp32", "bf16"]), default=("fp32",),
              show_default=True, help="Precisions to measure (repeatable).")  # fmt: skip
@json_option
def command(*, device: str, out: Path, quick: bool, ranks: int, dtypes: tuple[str, ...], as_json: bool) -> None:
    """Measure this machine's kernels and collectives and write them as a machine file.

    Micro-benchmarks only: no training step is run. Needs torch (`pip install shardwise[torch]`).

    \b
    Example:
      shardwise calibrate --quick --out here.toml
      shardwise estimate gpt2 here.toml --dp 2 --global-batch 2 --precision fp32 --framework pytorch-cpu
    """
    from simulator.calibrate.machine import calibrate
    from simulator.calibrate.write import toml_text

    found = calibrate(quick=quick, ranks=ranks, dtypes=dtypes, device=device)
    out.write_text(toml_text(found), encoding="utf-8")
    if as_json:
        print_json(found)
        return
    machine = found["machine"]
    device_table = found["device"]
    rates = f"{next(iter(device_table['peak'].values()))}, {device_table['memory_bandwidth']}"
    click.echo(f"wrote {out}: {found['title']}, {rates}")
    click.echo(f"{machine['wall_s']:.0f} s, load {machine['load_before']:.1f} to {machine['load_after']:.1f}, "
               f"rounds within {machine['spread_fraction']:.1%}")  # fmt: skip
    for name, residual in found["kernels"]["residuals"].items():
        click.echo(f"{name:28} {residual['count']:4.0f} sizes, fit within {residual['median']:.1%} (median), "
                   f"{residual['worst']:.1%} (worst)")  # fmt: skip
