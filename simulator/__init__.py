"""Shardwise: what one training step of a large model costs, for any model, cluster and parallel strategy.

    import simulator as sim

    model = sim.load_model("llama3.1-70b")
    cluster = sim.load_cluster("dgx-h100", nodes=64)
    run = sim.Run(global_batch=1024, seq_len=8192)
    strategy = sim.Strategy(tp=8, pp=4, dp=16, zero=1, recompute="selective")
    print(sim.estimate(model, cluster, run, strategy))
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from simulator import pictures

if TYPE_CHECKING:
    from simulator.catalog import load_cluster, load_framework, load_model
    from simulator.count import count
    from simulator.errors import Infeasible, InputError
    from simulator.estimate import estimate
    from simulator.plan.compare import compare
    from simulator.plan.planner import plan
    from simulator.plan.result import Plan
    from simulator.project.training import project
    from simulator.result import Estimate
    from simulator.spec.run import Run
    from simulator.spec.strategy import Strategy
    from simulator.sweep.run import sweep

__version__ = "0.1.0"
__all__ = [
    "Estimate",
    "Infeasible",
    "InputError",
    "Plan",
    "Run",
    "Strategy",
    "compare",
    "count",
    "estimate",
    "load_cluster",
    "load_framework",
    "load_model",
    "plan",
    "project",
    "sweep",
]

_HOME = {
    "Estimate": "result", "Infeasible": "errors", "InputError": "errors", "Run": "spec.run",
    "Strategy": "spec.strategy", "compare": "plan.compare", "count": "count", "estimate": "estimate",
    "load_cluster": "catalog",
    "load_framework": "catalog", "load_model": "catalog", "Plan": "plan.result", "plan": "plan.planner",
    "project": "project.training", "sweep": "sweep.run",
}  # fmt: skip
"""Module of each public name. They are imported on first use: `import simulator` alone loads nothing heavy."""


class _Package(ModuleType):
    """Public names on demand. Some (`estimate`, `plan`) are also names of modules: the function wins, whichever of the
    two was imported first.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'simulator' has no attribute {name!r}")
        value = getattr(import_module(f"simulator.{_HOME[name]}"), name)
        super().__setattr__(name, value)
        return value


def _paint(thing: pictures.Drawable, picture: str = "", **options: Any) -> Any:
    return import_module("simulator.report.plot").plot(thing, picture, **options)


sys.modules[__name__].__class__ = _Package
pictures.drawn_by(_paint)
