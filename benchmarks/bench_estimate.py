"""One estimate in process: GPT-3 175B on 128 DGX A100 nodes."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.benchmark import Benchmark


def _estimate() -> Callable[[], None]:
    from simulator import catalog
    from simulator.estimate import estimate
    from simulator.spec.run import Run
    from simulator.spec.strategy import Strategy

    model = catalog.load_model("gpt3-175b")
    cluster = catalog.load_cluster("dgx-a100", nodes=128)
    run = Run(global_batch=1536)
    strategy = Strategy(tp=8, pp=8, dp=16, vp=6, schedule="interleaved", micro_batch=1, recompute="selective")

    def call() -> None:
        estimate(model, cluster, run, strategy)

    return call


BENCHMARKS = [Benchmark(name="estimate gpt3-175b", prepare=_estimate, target_s=2e-3)]
