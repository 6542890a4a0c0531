"""Which strategies a framework would start: divisibility, groups, folding; every violation with its arithmetic."""

from __future__ import annotations

from simulator.errors import Complaints, did_you_mean
from simulator.numbers import divisors
from simulator.parallel.offload import check_offload
from simulator.spec.hardware import Cluster
from simulator.spec.model import AttentionSpec, ExpertsSpec, ModelSpec
from simulator.spec.run import CONVENTIONS, OPTIMIZERS, PRECISIONS, Run
from simulator.spec.strategy import CONTEXT_KINDS, OFFLOAD, RECOMPUTE, RECOMPUTE_MODULES, SCHEDULES, Strategy

DEGREES = ("tp", "pp", "dp", "cp", "ep", "etp", "vp", "micro_batch")
MAX_TASKS = 1_000_000
"""Forward, B and W of every stage and micro-batch in one simulated step: about 2 s and 400 MB of engine."""


def check(model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy) -> None:
    """Raise InputError with every reason for which this strategy cannot run."""
    complaints = Complaints()
    _check_words(run, strategy, complaints)
    _check_numbers(run, strategy, complaints)
    if not complaints.problems:
        _check_devices(cluster, strategy, complaints)
        check_offload(cluster, strategy, complaints)
        _check_batch(run, strategy, complaints)
        _check_model(model, run, strategy, complaints)
        _check_experts(model, strategy, complaints)
        _check_pipeline(model, strategy, complaints)
    complaints.raise_if_any()


def _check_words(run: Run, strategy: Strategy, complaints: Complaints) -> None:
    choices = (
        ("schedule", strategy.schedule, SCHEDULES),
        ("recompute", strategy.recompute, RECOMPUTE),
        ("context_kind", strategy.context_kind, CONTEXT_KINDS),
        ("offload", strategy.offload, OFFLOAD),
        ("precision", run.precision, PRECISIONS),
        ("optimizer", run.optimizer, OPTIMIZERS),
        ("flops_convention", run.flops_convention, CONVENTIONS),
        ("attention", run.attention, ("", "fused", "unfused")),
        *(("recompute_modules", module, RECOMPUTE_MODULES) for module in strategy.recompute_modules),
    )
    for name, word, known in choices:
        if word not in known:
            complaints.add(f"{name} {word!r} is unknown.", where=name, hint=did_you_mean(str(word), known))
    if strategy.recompute == "modules" and not strategy.recompute_modules:
        complaints.add("recompute = modules names no module.", where="recompute_modules",
                       hint=f"Choose from: {', '.join(RECOMPUTE_MODULES)}.")  # fmt: skip
    if sorted(strategy.order) != sorted(("tp", "cp", "ep", "dp", "pp")):
        complaints.add(f"order {'-'.join(strategy.order)} must hold tp, cp, ep, dp and pp once each.", where="order")


def _check_numbers(run: Run, strategy: Strategy, complaints: Complaints) -> None:
    for name in DEGREES:
        value = getattr(strategy, name)
        if not _whole(value, 1):
            complaints.add(f"{name}({value}) must be a whole number of at least 1.", where=name)
    if strategy.zero not in (0, 1, 2, 3):
        complaints.add(f"zero({strategy.zero}) must be 0, 1, 2 or 3.", where="zero")
    for name, number in (("global_batch", run.global_batch), ("seq_len", run.seq_len)):
        low = 0 if name == "seq_len" else 1
        if not _whole(number, low):
            complaints.add(f"{name}({number}) must be a whole number of at least {low}.", where=name)
    named = strategy.recompute_layers
    if not all(_whole(layers, 0) for layers in (named if isinstance(named, tuple) else (named,))):
        complaints.add(f"recompute_layers({_listed(named)}) must be whole numbers of at least 0.",
                       where="recompute_layers")  # fmt: skip
    if not _whole(run.routing_group, 0):
        complaints.add(f"routing_group({run.routing_group}) must be a whole number of at least 0.",
                       where="routing_group")  # fmt: skip
    if not run.expert_imbalance >= 1.0:
        complaints.add(f"expert_imbalance({run.expert_imbalance}) is a maximum over a mean: at least 1.",
                       where="expert_imbalance")  # fmt: skip


def _listed(numbers: int | tuple[int, ...]) -> str:
    return ",".join(map(str, numbers)) if isinstance(numbers, tuple) else str(numbers)


def _whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _check_devices(cluster: Cluster, strategy: Strategy, complaints: Complaints) -> None:
    product = strategy.devices
    if product != cluster.devices:
        rest = cluster.devices // (strategy.tp * strategy.cp * strategy.pp)
        complaints.add(
            f"tp({strategy.tp}) * cp({strategy.cp}) * pp({strategy.pp}) * dp({strategy.dp}) = {product}, but "
            f"{cluster.name} has {cluster.nodes} nodes * {cluster.devices_per_node} = {cluster.devices} devices.",
            where="dp",
            hint=f"dp = {rest} would use {rest * strategy.tp * strategy.cp * strategy.pp}." if rest else "",
        )


def _check_batch(run: Run, strategy: Strategy, complaints: Complaints) -> None:
    share = strategy.dp * strategy.micro_batch
    if run.global_batch % share:
        nearest = max(share, round(run.global_batch / share) * share)
        complaints.add(
            f"global_batch({run.global_batch}) % (dp({strategy.dp}) * micro_batch({strategy.micro_batch})) = "
            f"{run.global_batch % share}, not 0.",
            where="global_batch",
            hint=f"The nearest batch is {nearest}.",
        )
    tasks = 3 * strategy.stages * (run.global_batch // share)
    if tasks > MAX_TASKS:
        complaints.add(
            f"3 phases * {strategy.stages} stages * {run.global_batch // share:,} micro-batches = {tasks:,} tasks, "
            f"more than the {MAX_TASKS:,} that are simulated.",
            where="global_batch",
            hint="A larger micro_batch or dp makes fewer.",
        )
    if strategy.shard_group and strategy.dp % strategy.shard_group:
        complaints.add(f"shard_group({strategy.shard_group}) does not divide dp({strategy.dp}).", where="shard_group")


def attentions(model: ModelSpec) -> list[AttentionSpec]:
    """Every distinct attention of a model."""
    specs = [spec for stack in model.stacks for spec, _ in stack.runs]
    found = [a for spec in specs for a in (spec.attention, spec.cross_attention) if a is not None]
    return list(dict.fromkeys(found))


def expert_specs(model: ModelSpec) -> list[ExpertsSpec]:
    """Every distinct mixture of a model."""
    found = [spec.experts for stack in model.stacks for spec, _ in stack.runs if spec.experts is not None]
    return list(dict.fromkeys(found))


def _check_model(model: ModelSpec, run: Run, strategy: Strategy, complaints: Complaints) -> None:
    for spec in attentions(model):
        if spec.heads % strategy.tp:
            complaints.add(f"tp({strategy.tp}) does not divide heads({spec.heads}) of {model.name}.", where="tp",
                           hint=_nearest_divisor(spec.heads, strategy.tp))  # fmt: skip
        elif spec.kv_heads % strategy.tp and strategy.tp % spec.kv_heads:
            complaints.add(f"tp({strategy.tp}) and kv_heads({spec.kv_heads}) of {model.name}: neither divides the "
                           "other.", where="tp", hint=_nearest_divisor(spec.kv_heads, strategy.tp))  # fmt: skip
        if strategy.context_kind == "ulysses" and (spec.heads // strategy.tp) % strategy.cp:
            complaints.add(f"ulysses: cp({strategy.cp}) does not divide the {spec.heads // strategy.tp} heads of a tp "
                           "rank.", where="cp")  # fmt: skip
    hidden = {spec.feed_forward.hidden for stack in model.stacks for spec, _ in stack.runs if spec.feed_forward}
    for size in sorted(hidden):
        if size % strategy.tp:
            complaints.add(f"tp({strategy.tp}) does not divide the feed-forward size({size}).", where="tp",
                           hint=_nearest_divisor(size, strategy.tp))  # fmt: skip
    for name, length in (("seq_len", run.seq_len or model.seq_len), ("target_seq_len", run.target_seq_len)):
        split = strategy.cp * (strategy.tp if strategy.sequence_parallel else 1)
        if length and length % split:
            complaints.add(f"{name}({length}) is not a multiple of cp({strategy.cp}) * tp({strategy.tp}) = {split}, as "
                           "splitting the sequence needs.", where=name,
                           hint=f"{-(-length // split) * split} would be.")  # fmt: skip
    if strategy.tp > 1 and any(spec.lstm for stack in model.stacks for spec, _ in stack.runs):
        complaints.add("tensor parallelism of LSTM layers is not modelled.", where="tp", hint="Use tp = 1.")


def _divisor_below(number: int, near: int) -> int:
    return max(d for d in divisors(number) if d <= near)


def _nearest_divisor(number: int, near: int) -> str:
    return f"{_divisor_below(number, near)} would."


def _check_experts(model: ModelSpec, strategy: Strategy, complaints: Complaints) -> None:
    specs = expert_specs(model)
    if not specs:
        if strategy.ep > 1 or strategy.etp > 1:
            complaints.add(f"ep({strategy.ep}) and etp({strategy.etp}) need experts, and {model.name} has none.",
                           where="ep", hint="Use ep = 1 and etp = 1.")  # fmt: skip
        return
    for spec in specs:
        if spec.count % strategy.ep:
            complaints.add(f"ep({strategy.ep}) does not divide the {spec.count} experts of {model.name}.", where="ep",
                           hint=_nearest_divisor(spec.count, strategy.ep))  # fmt: skip
        if spec.hidden % strategy.etp:
            complaints.add(f"etp({strategy.etp}) does not divide the expert size({spec.hidden}).", where="etp",
                           hint=_nearest_divisor(spec.hidden, strategy.etp))  # fmt: skip
    ranks = strategy.tp * strategy.cp * strategy.dp
    if ranks % (strategy.ep * strategy.etp):
        complaints.add(
            f"folding: tp({strategy.tp}) * cp({strategy.cp}) * dp({strategy.dp}) = {ranks} is not a multiple of "
            f"ep({strategy.ep}) * etp({strategy.etp}) = {strategy.ep * strategy.etp}.",
            where="ep",
            hint=f"ep * etp = {_divisor_below(ranks, strategy.ep * strategy.etp)} would be.",
        )


def _check_pipeline(model: ModelSpec, strategy: Strategy, complaints: Complaints) -> None:
    layers, stages = model.layers, strategy.stages
    if strategy.layers_per_stage:
        given = strategy.layers_per_stage
        if len(given) != stages:
            complaints.add(f"layers_per_stage lists {len(given)} stages, but pp({strategy.pp}) * vp({strategy.vp}) = "
                           f"{stages}.", where="layers_per_stage")  # fmt: skip
        if sum(given) != layers:
            complaints.add(f"layers_per_stage sums to {sum(given)}, but {model.name} has {layers} layers.",
                           where="layers_per_stage")  # fmt: skip
        if any(count < 0 for count in given):
            complaints.add("layers_per_stage holds a negative number.", where="layers_per_stage")
    elif stages > layers:
        complaints.add(f"pp({strategy.pp}) * vp({strategy.vp}) = {stages} stages, but {model.name} has {layers} "
                       "layers.", where="pp", hint=f"At most {layers} stages.")  # fmt: skip
    if strategy.offload_inputs and strategy.recompute != "full":
        complaints.add(f"offload_inputs needs recompute = full, not {strategy.recompute}.", where="offload_inputs")
    if strategy.recompute_layers and strategy.recompute != "full":
        complaints.add(f"recompute_layers({_listed(strategy.recompute_layers)}) needs recompute = full, not "
                       f"{strategy.recompute}.", where="recompute_layers")  # fmt: skip
    if isinstance(strategy.recompute_layers, tuple) and len(strategy.recompute_layers) != stages:
        complaints.add(f"recompute_layers lists {len(strategy.recompute_layers)} stages, but pp({strategy.pp}) * "
                       f"vp({strategy.vp}) = {stages}.", where="recompute_layers",
                       hint="One number stands for every stage.")  # fmt: skip
