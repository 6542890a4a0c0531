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
    """Explain one training step of MODEL on CLUSTER: what binds it, and what one change of hardware or strategy would
    buy.
    """
    from simulator.estimate import estimate
    from simulator.plan.result import binds
    from simulator.report.plan import sensitivity_text
    from simulator.sensitivity import sensitivities

    case = case_of(options)
    base = estimate(case.model, case.cluster, case.run, case.strategy, framework=case.framework)
    rows = sensitivities(case.model, case.cluster, case.run, case.strategy, framework=case.framework)
    if as_json:
        names = ("step_time_s", "peak_memory_bytes", "device_memory_bytes", "fits")
        head = {name: getattr(base, name) for name in names}
        changes = [asdict(row) for row in rows]
        print_json({**head, "binds": binds(base), "last_rank": base.time.rank, "changes": changes})
    else:
        click.echo(sensitivity_text(base, rows))
