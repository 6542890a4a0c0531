"""One formula for one strategy or for a million: arrays of degrees give the scalars' numbers (DESIGN section 2)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from simulator.arch.layer import layer_segment
from simulator.cluster.placement import axis_groups
from simulator.parallel.lower import kernels_of, shard_for
from simulator.parallel.recompute import Policy, saved_bytes
from simulator.parallel.timing import segment_times
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from tests.support import dgx, gpt, mixture

FRAMEWORK = Framework(name="plain", attention="fused")
COLUMNS = [
    {"tp": 1, "cp": 1, "ep": 1, "etp": 1, "dp": 16, "pp": 1, "micro_batch": 1},
    {"tp": 2, "cp": 1, "ep": 2, "etp": 1, "dp": 4, "pp": 2, "micro_batch": 2},
    {"tp": 4, "cp": 2, "ep": 4, "etp": 1, "dp": 2, "pp": 1, "micro_batch": 1},
    {"tp": 8, "cp": 1, "ep": 8, "etp": 1, "dp": 1, "pp": 2, "micro_batch": 4},
]


@pytest.mark.parametrize("model", [gpt(1024, 4, 16), mixture()], ids=["dense", "mixture"])
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_an_array_of_strategies_gives_each_strategy_s_own_numbers(model, sequence_parallel) -> None:
    cluster, run = dgx(2), Run(global_batch=64)
    options = {"sequence_parallel": sequence_parallel, "context_kind": "all-gather"}
    names = ("tp", "cp", "ep", "etp", "dp", "pp", "micro_batch")
    columns = {name: np.array([column[name] for column in COLUMNS]) for name in names}
    together = _segment(model, cluster, run, SimpleNamespace(**columns, **options), columns)
    for index, column in enumerate(COLUMNS):
        alone = _segment(model, cluster, run, Strategy(**column, **options), column)
        assert alone[0] == pytest.approx(np.broadcast_to(together[0], 4)[index], rel=1e-12)
        for phase in ("forward", "input_grad", "weight_grad"):
            mine, theirs = getattr(alone[1], phase).total_s, getattr(together[1], phase).total_s
            assert float(mine) == pytest.approx(float(np.broadcast_to(theirs, 4)[index]), rel=1e-12)


def _segment(model, cluster, run, degrees, columns):
    kernels = kernels_of(model, run, FRAMEWORK, Strategy())
    shard = shard_for(model, run, FRAMEWORK, degrees)
    segment = layer_segment(model.stacks[0].runs[0][0], model, shard=shard, kernels=kernels, name="layer")
    axes = {name: columns[name] for name in ("tp", "cp", "ep", "etp", "dp", "pp")}
    times = segment_times([segment], Policy(), cluster, axis_groups(cluster, **axes))
    return saved_bytes(segment, Policy()), times["layer"]
