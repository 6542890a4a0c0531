"""Host seconds of a slot: which launches a graph replays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator import catalog
from simulator.parallel.setting import Setting
from simulator.parallel.stage_cost import StageCost
from simulator.parallel.timing import PhaseTime
from simulator.schedule.durations import durations_of
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from tests.support import dgx


@pytest.mark.parametrize(
    ("graphs", "experts", "host"),
    [(False, False, (30.0, 42.0)), (False, True, (30.0, 42.0)), (True, False, (12.0, 15.0)), (True, True, (0.0, 0.0))],
)
def test_a_graph_replays_launches_and_those_of_experts_where_their_sizes_are_fixed(
    graphs: bool, experts: bool, host: tuple[float, float]
) -> None:
    """3 s a launch: 10 forward of which 4 of experts; 11 and 3 back, of which 4 and 1."""
    software = replace(catalog.load_framework("megatron-bridge"), launch_s=3.0, cuda_graphs=graphs,
                       graphs_experts=experts)  # fmt: skip

    def phase(kernels: int, own: int) -> PhaseTime:
        return PhaseTime(parts={"gemm": 1.0}, hidden={}, kernels=kernels, experts_kernels=own)

    cost = StageCost(forward=phase(10, 4), input_grad=phase(11, 4), weight_grad=phase(5, 1), recompute=phase(3, 1))
    setting = Setting(
        run=Run(global_batch=1), strategy=Strategy(), framework=software, cluster=dgx(1), groups={}
    )
    found = durations_of([cost], setting)
    assert (found.forward_host_s[0], found.input_grad_host_s[0]) == host
