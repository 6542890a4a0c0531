"""What a published row recomputes: as it states, or the candidates from little to much where it does not."""

from __future__ import annotations

from dataclasses import replace

from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework
from simulator.spec.strategy import Strategy
from simulator.validate.models import Skip
from simulator.validate.runs import PublishedRun
from simulator.validate.software import recompute_modules

_MODULES = {
    False: (("core_attn", "layernorm"), ("core_attn", "layernorm", "mlp")),
    True: (("layernorm", "moe_act"), ("layernorm", "mla_up_proj", "moe_act", "shared_experts"), ("layernorm", "moe")),
}
"""Modules that published recipes of Megatron-Core recompute, from little to much, for dense models and mixtures."""


class Unclear(Exception):
    """A row that cannot be configured; `skip` says why."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.skip = Skip(reason, detail)


def recompute_choices(row: PublishedRun, model: ModelSpec, framework: Framework, base: Strategy) -> list[Strategy]:
    """As stated. Unstated: from the framework's default upwards; the score takes the first that fits, as recipes do."""
    kind = row.recompute
    if kind is not None:
        return [_stated_recompute(row, kind, model, framework, base)]
    start = str(framework.defaults.get("recompute", "none"))
    if start != "none":
        return [replace(base, recompute=start, offload_inputs=_on_host(start, framework))]
    held = -(-model.layers // base.stages)
    quarter, half, most = (
        replace(base, recompute="full", recompute_layers=-(-held * share // 4)) for share in (1, 2, 3)
    )
    *light, heavy = (
        replace(base, recompute="modules", recompute_modules=modules) for modules in _MODULES[model.mixture]
    )
    return [replace(base, recompute="none"), *light, quarter, half, heavy, most, replace(base, recompute="full")]


def _stated_recompute(
    row: PublishedRun, kind: str, model: ModelSpec, framework: Framework, base: Strategy
) -> Strategy:
    if kind == "other":
        return replace(base, recompute="full")
    share = framework.defaults.get("selective_layers_fraction")
    if kind == "selective" and share:
        layers = max(1, round(float(share) * model.layers / base.stages))
        return replace(base, recompute="full", recompute_layers=layers)
    if kind == "modules":
        modules, unknown = recompute_modules(row.recompute_detail)
        if unknown or not modules:
            raise Unclear(f"recompute module {', '.join(unknown) or '(none named)'}", row.recompute_detail)
        return replace(base, recompute="modules", recompute_modules=modules)
    return replace(base, recompute=kind, offload_inputs=_on_host(kind, framework))


def _on_host(kind: str, framework: Framework) -> bool:
    """Whether the software keeps the inputs of recomputed layers in host memory."""
    return kind == "full" and bool(framework.defaults.get("offload_inputs"))


def noted_recompute(row: PublishedRun, one: Strategy, rungs: int) -> list[str]:
    """What of recomputation was not stated."""
    found = []
    if row.recompute is None:
        least = "recompute: not stated; as little as fits"
        found.append(least if rungs > 1 else f"recompute = {one.recompute} (framework)")
    if one.offload_inputs:
        found.append("offload_inputs = True (framework)")
    if row.recompute == "other":
        found.append("recompute = full (row says other: what is not kept or offloaded is computed again)")
    return found
