"""What a plan is for: a model, a cluster, a run and its software."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a plan is for."""

    model: ModelSpec
    cluster: Cluster
    run: Run
    framework: Framework
