"""What holds on every cluster of unequal nodes: bounds, a faster node never hurts, names of nodes mean nothing."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

import simulator as sim
from simulator.cluster.members import as_slowest
from simulator.spec.hardware import Cluster
from simulator.spec.run import Framework
from tests.support import dgx, gpt, mixture

PLAIN = Framework(name="plain", launch_s=0.0)
DENSE, MIXTURE = gpt(2048, 8, 16), mixture(2048, 8, 16)
PACES = (1.0, 1.5, 2.5)
EVEN = 40
BASE = dgx(4)


def machine(paces: list[float]) -> Cluster:
    """Nodes that are so many times as fast as an A100 node, in all they do."""
    device, inside, card = BASE.device, BASE.tiers[0], BASE.tiers[1]

    def quicker(pace: float) -> tuple[object, object, object]:
        faster = replace(
            device,
            name=f"x{pace:g}",
            peak_flops_per_s={name: pace * peak for name, peak in device.peak_flops_per_s.items()},
            memory_bandwidth_bytes_per_s=pace * device.memory_bandwidth_bytes_per_s,
            vector_flops_per_s=pace * device.vector_flops_per_s,
        )
        return (faster, *(replace(tier, bandwidth_bytes_per_s=pace * tier.bandwidth_bytes_per_s)
                          for tier in (inside, card)))  # fmt: skip

    devices, tiers, cards = zip(*(quicker(pace) for pace in paces), strict=True)
    return replace(BASE, node_devices=devices, node_tiers=tiers, node_uplinks=cards)


@st.composite
def splits(draw: st.DrawFn) -> tuple[sim.ModelSpec, sim.Strategy]:
    tp, pp = draw(st.sampled_from([(8, 1), (8, 2), (8, 4), (4, 4), (4, 2), (2, 4), (1, 2)]))
    schedule = draw(st.sampled_from(["1f1b", "gpipe", "eager-1f1b"])) if pp > 1 else "1f1b"
    if pp == 4 and draw(st.booleans()):
        schedule = draw(st.sampled_from(["dualpipe", "chimera"]))
    model = DENSE if tp > 1 or schedule == "dualpipe" else draw(st.sampled_from([DENSE, MIXTURE]))
    dp = 32 // (tp * pp)
    order = draw(st.sampled_from([("tp", "cp", "ep", "dp", "pp"), ("tp", "cp", "ep", "pp", "dp")]))
    ep = draw(st.sampled_from([1, 4, 8])) if model.mixture else 1
    return model, sim.Strategy(tp=tp, pp=pp, dp=dp, ep=ep, schedule=schedule, order=order, zero=draw(st.integers(0, 1)))


def step_s(cluster: Cluster, split: tuple[sim.ModelSpec, sim.Strategy]) -> float:
    model, strategy = split
    run = sim.Run(global_batch=8 * strategy.dp, seq_len=1024)
    return sim.estimate(model, cluster, run, strategy, framework=PLAIN).step_time_s


paces = st.lists(st.sampled_from(PACES), min_size=4, max_size=4)


@given(paces, splits(), st.integers(0, 3))
@settings(max_examples=EVEN)
def test_a_faster_node_is_never_slower(
    given_paces: list[float], split: tuple[sim.ModelSpec, sim.Strategy], at: int
) -> None:
    faster = list(given_paces)
    faster[at] = 2.0 * faster[at]
    assert step_s(machine(faster), split) <= step_s(machine(given_paces), split) * (1 + 1e-9)


@given(paces, splits())
@settings(max_examples=EVEN)
def test_no_step_is_longer_than_at_the_slowest_nor_shorter_than_at_the_fastest(
    given_paces: list[float], split: tuple[sim.ModelSpec, sim.Strategy]
) -> None:
    cluster = machine(given_paces)
    found = step_s(cluster, split)
    assert found <= step_s(as_slowest(cluster)[0], split) * (1 + 1e-9)
    assert found >= step_s(machine([max(given_paces)] * 4), split) * (1 - 1e-9)


@given(paces, splits(), st.permutations(range(4)))
@settings(max_examples=EVEN)
def test_numbering_the_nodes_otherwise_changes_nothing(
    given_paces: list[float], split: tuple[sim.ModelSpec, sim.Strategy], names: list[int]
) -> None:
    """Node i becomes node names[i], and every rank stays on the node that it was on."""
    cluster = machine(given_paces)
    renamed = machine([given_paces[names.index(node)] for node in range(4)])
    ranks = tuple(8 * names[rank // 8] + rank % 8 for rank in range(32))
    as_listed = replace(cluster, rank_devices=tuple(range(32)))
    one, other = step_s(as_listed, split), step_s(replace(renamed, rank_devices=ranks), split)
    assert abs(one - other) <= 1e-9 * one
