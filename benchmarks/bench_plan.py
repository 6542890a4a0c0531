"""A plan with its proof in process: GPT-3 175B on 512 DGX A100 nodes, the whole space."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.benchmark import Benchmark


def _plan() -> Callable[[], None]:
    from simulator import catalog
    from simulator.plan.planner import plan
    from simulator.spec.run import Run

    model = catalog.load_model("gpt3-175b")
    cluster = catalog.load_cluster("dgx-a100", nodes=512)
    run = Run(global_batch=1536, seq_len=2048)

    def call() -> None:
        plan(model, cluster, run, limit=1)

    return call


BENCHMARKS = [Benchmark(name="plan gpt3-175b on 4,096 devices", prepare=_plan, target_s=2.0)]
