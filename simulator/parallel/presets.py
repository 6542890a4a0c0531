"""Switch Transformer's five partitionings as named strategies, and which core holds which weights and tokens.

Fedus 2022 (arXiv:2101.03961) section 5 and Figure 9: N = n * m cores, n data ways and m model ways; experts are split
over the data ways, the feed-forward size over the model ways. What the paper calls a core is a device here (a TPU v3
device is a chip of two cores).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from simulator.errors import InputError, Problem, did_you_mean
from simulator.numbers import divisors
from simulator.parallel.legal import attentions, expert_specs
from simulator.spec.model import ModelSpec
from simulator.spec.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitioning:
    """One of the five: its ways in words, as templates over n, m and E (experts per device group)."""

    weights: str
    tokens: str
    communication: str
    splits_model: bool
    splits_experts: bool
    splits_data: bool = True


PRESETS: Mapping[str, Partitioning] = MappingProxyType({
    "data": Partitioning(
        weights="every core holds the same full matrix",
        tokens="one batch over all cores: {n} different shares of it",
        communication="all-reduce of weight gradients over {n} cores, once per step",
        splits_model=False, splits_experts=False,
    ),
    "model": Partitioning(
        weights="one matrix over all cores: 1/{m} of its feed-forward size each",
        tokens="every core holds the same tokens",
        communication="all-reduce of [tokens, hidden] over {m} cores in forward and in backward, per feed-forward",
        splits_model=True, splits_experts=False, splits_data=False,
    ),
    "model+data": Partitioning(
        weights="{n} copies of a matrix, each over a group of {m} cores",
        tokens="the same tokens within a group of {m} cores, {n} different shares between groups",
        communication="all-reduce of [tokens / {n}, hidden] over {m} cores in forward and in backward; weight "
        "gradients over {n}",
        splits_model=True, splits_experts=False,
    ),
    "expert+data": Partitioning(
        weights="{e} different sets of experts, a core holds one; all else is the same on every core",
        tokens="one batch over all cores: {n} different shares of it",
        communication="all-to-all of [experts, capacity, hidden] over {e} cores to dispatch and to return, in forward "
        "and in backward; gradients of all but the experts' weights over {n}",
        splits_model=False, splits_experts=True,
    ),
    "expert+model+data": Partitioning(
        weights="{e} different sets of experts, each over a group of {m} cores: 1/{m} of its feed-forward size each",
        tokens="the same tokens within a group of {m} cores, {n} different shares between groups",
        communication="all-to-all over {e} groups, all-reduce over {m} cores inside each expert",
        splits_model=True, splits_experts=True,
    ),
})  # fmt: skip
"""Figure 9's columns, left to right (facts: table of section 5, guide facts_models 3.1)."""


@dataclass(frozen=True, slots=True)
class CoreShare:
    """What one core holds of one feed-forward layer."""

    matrix: int
    """Which matrix: cores with equal numbers hold (a slice of) the same weights. A set of experts counts as one."""
    part: int
    """Which slice of it."""
    parts: int
    """Slices that the matrix is cut into."""
    tokens: int
    """Which share of the batch it works on."""


def preset(name: str, model: ModelSpec, devices: int, *, model_ways: int = 0, micro_batch: int = 1) -> Strategy:
    """One of the five partitionings for a model on `devices` devices.

    `model_ways` is m where both n and m are above one (0: the divisor of the devices nearest below their square root
    that splits the heads and feed-forwards). Experts go to the most data ways that divide their number. Mesh-TensorFlow
    splits no sequences, so sequence parallelism is off. Raises InputError for an unknown name, experts that the model
    does not have, and ways that do not divide the devices.

    >>> from simulator.catalog import load_model
    >>> found = preset("expert+model+data", load_model("switch-xxl"), 16)
    >>> found.tp, found.dp, found.ep, found.etp
    (4, 4, 4, 4)
    """
    if name not in PRESETS:
        raise InputError([Problem(f"{name} is no partitioning.", "--preset", did_you_mean(name, PRESETS))])
    chosen, specs = PRESETS[name], expert_specs(model)
    if chosen.splits_experts and not specs:
        near = name.removeprefix("expert+")
        raise InputError([Problem(f"{name} needs experts, and {model.name} has none.", "--preset",
                                  f"{near} splits the rest alike.")])  # fmt: skip
    m = _model_ways(chosen, model, devices, model_ways)
    n = devices // m
    ep = max(d for d in divisors(n) if all(spec.count % d == 0 for spec in specs)) if chosen.splits_experts else 1
    return Strategy(tp=m, dp=n, ep=ep, etp=m if specs else 1, micro_batch=micro_batch, sequence_parallel=False)


def _model_ways(chosen: Partitioning, model: ModelSpec, devices: int, asked: int) -> int:
    if not chosen.splits_model:
        return 1
    if not chosen.splits_data:
        return devices
    if asked:
        if devices % asked:
            near = max(d for d in divisors(devices) if d <= asked)
            raise InputError([Problem(f"{asked} model ways do not divide {devices} devices.", "--preset",
                                      f"{near} do.")])  # fmt: skip
        return asked
    sizes = [spec.heads for spec in attentions(model)] + [spec.hidden for spec in expert_specs(model)]
    fitting = (d for d in divisors(devices) if d * d <= devices and all(size % d == 0 for size in sizes))
    return max(fitting)


def describe(name: str, strategy: Strategy) -> tuple[str, ...]:
    """Weight split, token split and communication of a preset's strategy, in words."""
    chosen = PRESETS[name]
    ways = {"n": strategy.dp, "m": strategy.tp, "e": strategy.ep}
    return (
        f"Preset {name} (Switch Transformer, Figure 9): n = {strategy.dp} data ways, m = {strategy.tp} model ways.",
        f"Weights: {chosen.weights.format(**ways)}.",
        f"Tokens: {chosen.tokens.format(**ways)}.",
        f"Communication: {chosen.communication.format(**ways)}.",
    )


def core_shares(strategy: Strategy) -> tuple[CoreShare, ...]:
    """What every core holds of a feed-forward layer: of experts where they are split, else of the dense matrix.

    >>> core_shares(Strategy(tp=2, dp=2))[3]
    CoreShare(matrix=0, part=1, parts=2, tokens=1)
    """
    split, experts = (strategy.etp, strategy.ep) if strategy.ep > 1 else (strategy.tp, 1)
    return tuple(
        CoreShare(core // split % experts, core % split, split, core // strategy.tp)
        for core in range(strategy.tp * strategy.dp)
    )
