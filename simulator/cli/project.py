"""shardwise project: a training run as a project."""

from __future__ import annotations

from typing import Any

import click

from simulator.cli.options import case_of, case_options, json_option, print_json
from simulator.cli.quantities import FiniteRange, Quantity


@click.command("project")
@case_options
@click.option("--tokens", type=Quantity("count"), help='Tokens to train on, as in "300B" (default: 20 per parameter).')
@click.option("--price", type=Quantity("price"), help='Price of a device hour, as in "2.50 USD/h".')
@click.option("--power", type=Quantity("power"), help='Mean power per device with its share of the system ("430 W").')
@click.option("--pue", type=FiniteRange(1, 10), help="Power of the building over that of the machines.")
@click.option("--carbon", type=FiniteRange(0, 10), help="Carbon of the grid [kg CO2e per kWh].")
@click.option("--device-mtbf", type=Quantity("time"), help='Mean time between failures of a device ("50000 h").')
@click.option("--detection", type=Quantity("time"), help="Time until a failure is noticed.")
@click.option("--restart", type=Quantity("time"), help="Time from there until training goes on.")
@click.option("--storage", type=Quantity("bandwidth"), help='Write bandwidth of the storage, whole job ("2 TB/s").')
@click.option("--asynchronous", is_flag=True, default=None, help="Checkpoints are written beside training.")
@click.option("--interval", type=Quantity("time"), help="Useful work between checkpoints (default: the optimum).")
@click.option("--spares", type=click.IntRange(0, 10**6), help="Spare nodes (default: a failed node is replaced).")
@click.option("--repair", type=Quantity("time"), help="Time to repair a node.")
@click.option("--spread", type=FiniteRange(0, 0.5), help="Relative standard deviation of the devices' speeds.")
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Days, device hours, dollars and energy of training MODEL on CLUSTER, with failures.

    \b
    Example:
      shardwise project gpt3-175b dgx-a100 --nodes 128 --tp 8 --pp 8 --global-batch 1536 --recompute full \\
          --tokens 300B --price "2 USD/h"
    """
    from simulator.project.training import Conditions, project, with_conditions
    from simulator.report.project import project_text

    case = case_of(options)
    chosen = {
        "price_usd_per_device_hour": options["price"], "watts_per_device": options["power"], "pue": options["pue"],
        "carbon_kg_per_kwh": options["carbon"], "device_mtbf_s": options["device_mtbf"],
        "detection_s": options["detection"], "restart_s": options["restart"],
        "storage_bytes_per_s": options["storage"], "asynchronous": options["asynchronous"],
        "interval_s": options["interval"], "spare_nodes": options["spares"], "repair_s": options["repair"],
        "spread_fraction": options["spread"],
    }  # fmt: skip
    answer = project(
        case.model, case.cluster, case.run, case.strategy, tokens=options["tokens"],
        conditions=with_conditions(Conditions(), chosen), framework=case.framework,
    )  # fmt: skip
    if as_json:
        print_json(answer.to_dict())
    else:
        click.echo(project_text(answer, said=case.said))
