"""Plans with their proofs in process, whole spaces: GPT-3 175B on 512 DGX A100 nodes, DeepSeek-V3 on 256 HGX H800
nodes; and how many strategies a core scores per second (memory and bound) when none is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from benchmarks.benchmark import Benchmark


def _question(model: str, cluster: str, nodes: int, **run: Any) -> Any:
    from simulator import catalog
    from simulator.plan.question import Question
    from simulator.spec.run import Run

    asked = Run(**run)
    return Question(model=catalog.load_model(model), cluster=catalog.load_cluster(cluster, nodes=nodes), run=asked,
                    framework=catalog.load_framework(asked.framework))  # fmt: skip


def _gpt3() -> Any:
    return _question("gpt3-175b", "dgx-a100", 512, global_batch=1536, seq_len=2048)


def _deepseek() -> Any:
    return _question("deepseek-v3", "hgx-h800", 256, global_batch=15360, seq_len=4096, precision="fp8")


def _plan(asked: Callable[[], Any]) -> Callable[[], Callable[[], None]]:
    def prepare() -> Callable[[], None]:
        from simulator.plan.planner import plan

        question = asked()

        def call() -> None:
            plan(question.model, question.cluster, question.run, limit=1)

        return call

    return prepare


def _score() -> Callable[[], None]:
    from simulator.plan.limits import Limits
    from simulator.plan.score import Sieve, layout_scores
    from simulator.plan.space import build_space

    question = _gpt3()
    space = build_space(question.model, question.cluster, question.run, question.framework, Limits())

    limit_bytes = question.cluster.device.memory_bytes

    def call() -> None:
        sieve = Sieve(space, question, math.inf)
        scored = sum(
            scores.scored
            for layout, orders in sieve.layouts()
            for scores in layout_scores(layout, orders, lambda: math.inf, limit_bytes=limit_bytes)
        )
        assert scored == SCORED

    return call


SCORED = 518_650
"""Memories and bounds of GPT-3 175B on 4,096 A100, one for each of its 2,816,688 legal strategies but for those that
differ in how many layers they recompute: the fewest that fit of all stages, and those of each, count once.
"""

BENCHMARKS = [
    Benchmark(name="plan gpt3-175b on 4,096 devices", prepare=_plan(_gpt3), target_s=2.0),
    Benchmark(name="plan deepseek-v3 on 2,048 devices", prepare=_plan(_deepseek), target_s=10.0, calls=1),
    Benchmark(name="score gpt3-175b on 4,096 devices", prepare=_score, target_s=SCORED / 200_000, work=SCORED,
              unit="strategies", calls=1),
]  # fmt: skip
