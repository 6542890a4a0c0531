"""A published row -> what `estimate` takes, with every default that was taken, or the reason why not.

A row leaves much open. What arithmetic gives (dp from the devices) is computed, what is left is the default of the
framework in the row's `system` column, and where the software or its users search (an automatic sharding, a batch "of
several tried") every candidate is kept: the score takes the fastest that fits, as they did.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from simulator.errors import ShardwiseError
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from simulator.validate.machines import machine_of
from simulator.validate.models import Skip, generator_of, model_for
from simulator.validate.recomputed import Unclear, noted_recompute, recompute_choices
from simulator.validate.runs import PublishedRun, flags
from simulator.validate.software import binned_length, framework_for, noted, said_of, year_of

MAX_CANDIDATES = 64


class Facts(Protocol):
    """Where models, clusters and framework profiles come from (`simulator.catalog`, or a test's own)."""

    @property
    def models(self) -> Mapping[str, ModelSpec]: ...

    @property
    def frameworks(self) -> Mapping[str, Framework]: ...

    def cluster(
        self, device: str, devices: int, devices_per_node: int | None, nic_bytes_per_s: float | None,
        machine: str = "",
    ) -> Cluster: ...  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What a row means. `rungs` holds one strategy, or the candidates among which the source chose.

    Candidates of a later rung recompute more: they count only where nothing of an earlier one fits.
    """

    models: tuple[ModelSpec, ...]
    """One, or the two that ELECTRA trains in a step."""
    cluster: Cluster
    run: Run
    rungs: tuple[tuple[Strategy, ...], ...]
    framework: Framework
    defaults: tuple[str, ...]


def configure(row: PublishedRun, facts: Facts) -> Configuration | Skip:
    """Everything `estimate` needs for a row, or a `Skip` that names the missing field or feature."""
    contradictions = flags(row)
    if contradictions:
        return Skip("the row contradicts itself", "; ".join(contradictions))
    try:
        return _configure(row, facts)
    except Unclear as unclear:
        return unclear.skip


def _configure(row: PublishedRun, facts: Facts) -> Configuration:
    taken: list[str] = []
    framework = _framework(row, facts, taken)
    if row.train_kind not in ("", "pretrain"):
        raise Unclear(f"training kind {row.train_kind} is not modelled")
    for name in ("device", "devices", "global_batch", "seq_len"):
        if getattr(row, name) is None:
            raise Unclear(f"{name} not stated")
    says = noted(row)
    built = model_for(row, facts.models, int(framework.defaults.get("vocab", 50257)))
    if isinstance(built, Skip):
        raise Unclear(built.reason, built.detail)
    model, notes = built
    taken += notes
    row = _binned(row, framework, taken)
    machine = machine_of(row)
    if machine:
        taken.append(f"cluster = {machine} (source)")
    try:
        cluster = facts.cluster(
            row.device or "", row.devices or 1, row.devices_per_node, row.nic_bytes_per_s, machine
        )
    except ShardwiseError as error:
        raise Unclear(f"no cluster of device {row.device}", str(error)) from None
    run = replace(_run(row, model, framework, taken), **says.run)  # type: ignore[arg-type]
    rungs = tuple(
        tuple(replace(strategy, **says.strategy) for strategy in rung)  # type: ignore[arg-type]
        for rung in _strategies(row, model, framework, taken)
    )
    taken += [f"{k} = {v} (notes)" for k, v in {**says.run, **says.strategy}.items()]
    models = generator_of(model) if "generator + discriminator" in row.notes else (model,)
    return Configuration(
        models=models, cluster=cluster, run=run, rungs=rungs, framework=framework, defaults=tuple(taken)
    )


def _binned(row: PublishedRun, framework: Framework, taken: list[str]) -> PublishedRun:
    """The row with the mean length of its sequences, where the loader bins them by length."""
    bins = int(framework.defaults.get("sequence_bins", 8 if ", with LDDL" in row.system else 0))
    if not bins or row.arch != "encoder":
        return row
    length = binned_length(row.seq_len or 0, bins)
    taken.append(f"seq_len = {length} (mean of {bins} length bins)")
    return replace(row, seq_len=length)


def _framework(row: PublishedRun, facts: Facts, taken: list[str]) -> Framework:
    name = framework_for(row.system, year_of(row), facts.frameworks, said_of(row))
    if name is None:
        name = _generic(row)
        taken.append(f"framework = {name} (no profile names {row.system!r})")
    return facts.frameworks[name]


def _generic(row: PublishedRun) -> str:
    """What an unheard-of system is taken for: XLA on TPUs; who splits layers or stages does as Megatron-Core, who
    shards parameters as FSDP, and the rest as plain PyTorch.
    """
    if (row.device or "").startswith("tpu"):
        return "maxtext"
    if max(row.tp or 1, row.pp or 1, row.ep or 1) > 1:
        return "megatron-core"
    return "torch-fsdp" if row.zero == 3 else "pytorch"


def _run(row: PublishedRun, model: ModelSpec, framework: Framework, taken: list[str]) -> Run:
    defaults: Mapping[str, Any] = framework.defaults
    precision = row.precision
    if precision is None:
        precision = str(defaults.get("precision", "bf16"))
        taken.append(f"precision = {precision} (framework)")
    if row.attention is None:
        taken.append(f"attention = {framework.attention} (framework)")
    capacity = row.capacity_factor
    if model.mixture and capacity is None and "capacity_factor" in defaults:
        capacity = float(defaults["capacity_factor"])
        taken.append(f"capacity_factor = {capacity:g} (framework)")
    group = 0
    if model.mixture and not _routing_group(model) and "routing_group" in defaults:
        group = int(defaults["routing_group"])
        taken.append(f"routing_group = {group} (framework)")
    target = 0
    if row.arch == "encoder-decoder":
        stated = re.search(r"decoder (\d+)", f"{row.assumed}; {row.notes}")
        target = int(stated.group(1)) if stated else int(defaults.get("target_seq_len", row.seq_len or 0))
        taken.append(f"target_seq_len = {target} ({'row' if stated else 'framework'})")
    return Run(
        global_batch=row.global_batch or 1, seq_len=row.seq_len or 0, target_seq_len=target, precision=precision,
        optimizer=str(defaults.get("optimizer", "adamw")), framework=framework.name, attention=row.attention or "",
        capacity_factor=capacity, routing_group=group,
    )  # fmt: skip


def _routing_group(model: ModelSpec) -> int:
    """Tokens that the model's own file routes together, 0 where it does not say."""
    mixed = (spec.experts for stack in model.stacks for spec, _ in stack.runs if spec.experts is not None)
    return max((experts.routing_group for experts in mixed), default=0)


def _strategies(
    row: PublishedRun, model: ModelSpec, framework: Framework, taken: list[str]
) -> list[list[Strategy]]:
    """Candidates by rung of recomputation."""
    defaults: Mapping[str, Any] = framework.defaults
    pp, cp = _stated(row, "pp", 1, taken), row.cp or 1
    rungs: dict[int, list[Strategy]] = {}
    tps = _tensor_degrees(row, pp, cp)
    for tp in tps:
        dp = _data_degree(row, tp, pp, cp, taken if len(tps) == 1 else [])
        for micro_batch in _micro_batches(row, framework, dp):
            base = Strategy(
                tp=tp, pp=pp, cp=cp, dp=dp, micro_batch=micro_batch,
                zero=row.zero if row.zero is not None else int(defaults.get("zero", 0)),
                shard_group=_shard_group(framework, dp, taken),
                sequence_parallel=tp > 1 and (_splits_sequences(row, framework) if row.sp is None else row.sp),
            )  # fmt: skip
            for piped in _pipelines(row, model, framework, base):
                for rung, choice in enumerate(recompute_choices(row, model, framework, piped)):
                    rungs.setdefault(rung, []).extend(_experts(row, model, framework, choice))
    if not tps:
        raise Unclear("tp * cp * pp does not divide the devices", f"pp({pp}), {row.devices} devices; {row.notes}")
    if not rungs:
        raise Unclear("no micro-batch divides the batch", f"global_batch({row.global_batch})")
    _note_strategy(row, rungs[0], len(rungs), taken)
    return [rungs[rung][:MAX_CANDIDATES] for rung in sorted(rungs)]


def _splits_sequences(row: PublishedRun, framework: Framework) -> bool:
    """The framework's default of sequence parallelism, which its encoder-decoders do not have.

    NeMo v1.17 nlp/modules/common/megatron/token_level_encoder_decoder.py hands none to its encoder and decoder.
    """
    return bool(framework.defaults.get("sequence_parallel")) and row.arch != "encoder-decoder"


def _stated(row: PublishedRun, name: str, default: int, taken: list[str]) -> int:
    value = getattr(row, name)
    if value is None:
        taken.append(f"{name} = {default} (not stated)")
        return default
    return int(value)


def _tensor_degrees(row: PublishedRun, pp: int, cp: int) -> list[int]:
    """The stated degree; from dp and the devices; or all powers of two within a node that divide the heads."""
    devices = row.devices or 1
    if row.tp is not None:
        return [row.tp]
    if row.dp is not None:
        rest = devices // (row.dp * pp * cp)
        return [max(1, rest)]
    within = min(row.devices_per_node or 8, devices // (pp * cp))
    heads = row.heads or 1
    return [tp for tp in (1, 2, 4, 8, 16) if tp <= within and heads % tp == 0 and devices % (tp * pp * cp) == 0]


def _shard_group(framework: Framework, dp: int, taken: list[str]) -> int:
    """The framework's own shard group, where it is smaller than dp and divides it."""
    group = int(framework.defaults.get("shard_group", 0))
    if not group or group >= dp or dp % group:
        return 0
    said = f"shard_group = {group} (framework)"
    if said not in taken:
        taken.append(said)
    return group


def _data_degree(row: PublishedRun, tp: int, pp: int, cp: int, taken: list[str]) -> int:
    devices, ranks = row.devices or 1, tp * pp * cp
    if devices % ranks:
        raise Unclear("tp * cp * pp does not divide the devices", f"{tp} * {cp} * {pp} against {devices}")
    dp = devices // ranks
    if row.dp is None:
        taken.append(f"dp = {dp} (devices)")
    elif row.dp != dp:
        taken.append(f"dp = {dp} (printed {row.dp} counts replicas of one expert: times ep {row.ep})")
    return dp


def _micro_batches(row: PublishedRun, framework: Framework, dp: int) -> list[int]:
    """The stated micro-batch; from the framework's accumulation steps; or every power of two that divides the share."""
    batch = row.global_batch or 1
    if row.micro_batch is not None:
        if batch % (dp * row.micro_batch):
            raise Unclear(
                "global_batch is no multiple of dp * micro_batch", f"{batch} % ({dp} * {row.micro_batch}) is not 0"
            )
        return [row.micro_batch]
    if batch % dp:
        return []
    share = batch // dp
    steps = framework.defaults.get("micro_batches")
    if steps:
        return [share // int(steps)] if share % int(steps) == 0 else [share]
    return [size for size in (1, 2, 4, 8, 16, 32, 64) if share % size == 0]


def _experts(row: PublishedRun, model: ModelSpec, framework: Framework, base: Strategy) -> list[Strategy]:
    """Expert degrees: as stated; etp as the framework has it (0: as tp) where the folding allows.

    Where the software shards on its own (no tp stated), experts stay whole or are spread over the replicas.
    """
    if not model.mixture:
        return [base]
    if row.ep is None and row.tp is None and base.dp > 1 and (row.experts or 1) % base.dp == 0:
        return [base, replace(base, ep=base.dp)]
    ep = row.ep or int(framework.defaults.get("ep", 1)) or _most_experts(row, base)
    etp = row.etp
    if etp is None:
        etp = int(framework.defaults.get("etp", 1)) or base.tp
        if (base.tp * base.cp * base.dp) % (ep * etp):
            etp = 1
    return [replace(base, ep=ep, etp=etp)]


def _most_experts(row: PublishedRun, base: Strategy) -> int:
    """The widest expert parallelism: the largest degree that divides the experts and the ranks of a stage."""
    return math.gcd(row.experts or 1, base.tp * base.cp * base.dp)


def _pipelines(row: PublishedRun, model: ModelSpec, framework: Framework, base: Strategy) -> list[Strategy]:
    """The pipeline as stated; where the framework interleaves by default (`vp` 0) and nothing is said, every way."""
    open_vp = row.vp is None and row.schedule is None and framework.defaults.get("vp") == 0
    if base.pp == 1 or not open_vp or model.layers % base.pp:
        return [_pipeline(row, model, framework, base)]
    held = model.layers // base.pp
    return [_pipeline(replace(row, vp=vp), model, framework, base) for vp in range(1, held + 1) if held % vp == 0]


def _pipeline(row: PublishedRun, model: ModelSpec, framework: Framework, base: Strategy) -> Strategy:
    schedule = row.schedule
    if base.pp == 1:
        return base
    if schedule == "other":
        raise Unclear("schedule other", row.notes)
    vp = row.vp or 1
    if schedule is None:
        schedule = "interleaved" if vp > 1 else "1f1b"
    if schedule == "1f1b" and vp > 1:
        schedule = "interleaved"
    if schedule == "interleaved" and vp == 1:
        vp = _virtual_stages(model.layers, base.pp)
        schedule = "interleaved" if vp > 1 else "1f1b"
    if schedule in ("zbv", "v-half", "v-min", "dualpipev") and row.vp is None:
        vp = 2
    split = _split(model.layers, base.pp * vp)
    if not split and framework.defaults.get("rest_on_last_stage"):
        split = rest_on_last_stage(model.layers, model.head.mtp_layers, base.pp * vp)
    return replace(base, schedule=schedule, vp=vp, layers_per_stage=split)


def _virtual_stages(layers: int, pp: int) -> int:
    """As many chunks per rank as layers allow; two missing layers stand for the embedding and the head."""
    for total in (layers, layers + 2):
        if total % pp == 0:
            return total // pp
    return 1


def _split(layers: int, stages: int) -> tuple[int, ...]:
    """Explicit where layers are two short of even: the first and last stage hold the embedding and the head."""
    if layers % stages == 0 or (layers + 2) % stages:
        return ()
    each = (layers + 2) // stages
    return (each - 1, *[each] * (stages - 2), each - 1) if stages > 1 else ()


def rest_on_last_stage(layers: int, mtp_layers: int, stages: int) -> tuple[int, ...]:
    """Equal stages, the last with the layers that are left beside the multi-token-prediction depths and the loss.

    Where that would be less than none, embedding, depths and loss take the place of a layer each (Megatron-Bridge
    recipes/deepseek/deepseek_v3.py set_deepseek_v3_pipeline_model_parallel_layout and its "Et|(tt|)*30mL" for H100;
    recipes/kimi/kimi_k2.py). Empty where neither comes out even.

    >>> rest_on_last_stage(61, 1, 4), rest_on_last_stage(61, 1, 32)[:2], rest_on_last_stage(61, 1, 32)[-2:]
    ((16, 16, 16, 13), (1, 2), (2, 0))
    """
    each = -(-layers // stages)
    rest = layers - each * (stages - 1)
    if layers % stages == 0 or rest > 0:
        return (*[each] * (stages - 1), rest) if layers % stages else ()
    each = (layers + 2 + mtp_layers) // stages
    if (layers + 2 + mtp_layers) % stages or each < 1 + mtp_layers:
        return ()
    return (each - 1, *[each] * (stages - 2), each - 1 - mtp_layers)


def _note_strategy(row: PublishedRun, found: list[Strategy], rungs: int, taken: list[str]) -> None:
    """Record what was not stated; with several candidates, that the fastest that fits is scored."""
    one = found[0]
    if row.zero is None:
        taken.append(f"zero = {one.zero} (framework)")
    taken += noted_recompute(row, one, rungs)
    if row.sp is None and one.tp > 1:
        taken.append(f"sp = {int(one.sequence_parallel)} (framework)")
    if one.pp > 1 and row.schedule is None:
        taken.append(f"schedule = {one.schedule} (vp)")
    if len({s.vp for s in found}) > 1:
        taken.append("vp: not stated; the fastest even interleaving")
    elif one.pp > 1 and row.vp is None and one.vp > 1:
        taken.append(f"vp = {one.vp} (layers)")
    if row.ep is None and one.ep > 1:
        taken.append(f"ep = {one.ep} (framework)")
    if one.etp > 1 and row.etp is None:
        taken.append(f"etp = {one.etp} (framework)")
    open_fields = [name for name in ("tp", "micro_batch") if getattr(row, name) is None]
    if len(found) > 1 and open_fields:
        taken.append(f"{', '.join(open_fields)}: not stated; the fastest of {len(found)} candidates that fits")
    elif row.micro_batch is None:
        taken.append(f"micro_batch = {one.micro_batch} (framework)")
