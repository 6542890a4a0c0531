"""shardwise explain: what binds a step, and what one change would buy."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from simulator.cli.options import case_of, case_options, json_option, print_json


@click.command("explain")
@case_options
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Explain one training step of MODEL on CLUSTER: what one change of hardware or strategy would buy."""
    from simulator.report.plan import sensitivity_text
    from simulator.sensitivity import sensitivities

    case = case_of(options)
    rows = sensitivities(case.model, case.cluster, case.run, case.strategy, framework=case.framework)
    if as_json:
        print_json({"changes": [asdict(row) for row in rows]})
    else:
        click.echo(sensitivity_text(rows))
