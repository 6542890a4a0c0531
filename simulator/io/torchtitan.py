"""torchtitan's job configuration: TOML as `torchtitan/config/job_config.py` of release 0.2.2 reads it.

That is the last release with TOML files; later ones are configured in Python, with the same names under
`parallelism` but batches in tokens (pytorch/torchtitan@b5bcd76), which are read too. Mapping of FSDP:
`fsdp_reshard_after_forward` "always" is ZeRO-3; "never" keeps gathered parameters, over all micro-batches of a step
under a pipeline (ZeRO-2), over one forward and backward without (`reshard_after_forward = false`).
"""

from __future__ import annotations

from typing import Any

from simulator.errors import Complaints
from simulator.io.imported import Imported, refuse_unwritten, split_of
from simulator.io.said import Said, said_in_toml
from simulator.parallel.lower import layers_of_stages
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

VERSION = "torchtitan 0.2.2"
SCHEDULES = {
    "1f1b": "1F1B", "gpipe": "GPipe", "interleaved": "Interleaved1F1B", "interleaved-bfs": "LoopedBFS",
    "zb-h1": "InterleavedZeroBubble", "zbv": "ZBVZeroBubble", "dualpipev": "DualPipeV",
}  # fmt: skip
"""Our names and those of torch.distributed.pipelining.schedules get_schedule_class."""
MAX_STAGES = 10_000
ONE_STAGE = ("1f1b", "gpipe")
PRECISIONS = ("bf16", "fp32")
ROTATE = {"all-gather": "allgather", "ring": "alltoall"}
_WRITTEN = (
    "tp", "pp", "dp", "cp", "ep", "etp", "vp", "schedule", "micro_batch", "zero", "shard_group", "layers_per_stage",
    "reshard_after_forward", "sequence_parallel", "context_kind", "recompute", "overlap_grad_reduce",
    "overlap_param_gather", "overlap_tp", "overlap_moe", "offload", "global_batch", "seq_len", "precision", "optimizer",
)  # fmt: skip
_COSTLY = {
    "parallelism.pipeline_parallel_schedule_csv": "a schedule of one's own is not read.",
    "parallelism.disable_loss_parallel": "the loss on whole logits is the framework profile's to say.",
    "quantize.linear.float8.recipe_name": "which layers run in FP8 is the model's; precision = fp8 is the nearest.",
    "quantize.linear.mx.recipe_name": "which layers run in MXFP8 is the model's; precision = mxfp8 is nearest.",
}  # fmt: skip


def dump(strategy: Strategy, run: Run, model: ModelSpec) -> str:
    """The configuration as TOML, after a comment that names the version.

    Raises InputError for what torchtitan does not run or this export does not say, with every reason.
    """
    _check(strategy, run, model)
    tables = {
        "training": _training(strategy, run),
        "parallelism": _parallelism(strategy, model.layers),
        "activation_checkpoint": {"mode": strategy.recompute},
        "optimizer": {"name": "Adam" if run.optimizer == "adam" else "AdamW"},
    }
    if strategy.overlap_tp and strategy.tp > 1:
        tables["compile"] = {"enable": True}
    lines = [f"# {VERSION}"]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _check(strategy: Strategy, run: Run, model: ModelSpec) -> None:
    broken = Complaints()
    refuse_unwritten(broken, run, strategy, target="torchtitan", written=_WRITTEN)
    broken.require(strategy.schedule in SCHEDULES, f"torchtitan does not run {strategy.schedule}.", where="schedule",
                   hint=f"Choose from: {', '.join(SCHEDULES)}.")  # fmt: skip
    if strategy.schedule in SCHEDULES and strategy.pp > 1 and strategy.schedule not in ONE_STAGE:
        broken.require(strategy.vp > 1, f"torchtitan runs {strategy.schedule} with two stages per rank at least, not "
                       f"vp({strategy.vp}).", where="vp")  # fmt: skip
    broken.require(strategy.zero in (0, 2, 3), f"zero({strategy.zero}): torchtitan replicates (0) or shards gradients "
                   "and parameters too (2, 3).", where="zero")  # fmt: skip
    broken.require(strategy.zero > 0 or strategy.cp == 1, "torchtitan shards over context-parallel ranks: cp > 1 needs "
                   "zero = 3.", where="zero")  # fmt: skip
    broken.require(strategy.zero != 2 or strategy.pp > 1, "zero(2) without a pipeline: fully_shard gathers in every "
                   "micro-batch. Say zero = 3 with reshard_after_forward = false.", where="zero")  # fmt: skip
    broken.require(strategy.zero == 0 or strategy.reshard_after_forward or strategy.pp == 1, "under a pipeline, "
                   "gathered parameters that are kept are zero = 2.", where="reshard_after_forward")  # fmt: skip
    broken.require(not strategy.shard_group or strategy.zero > 0, "a shard group needs zero = 2 or 3.",
                   where="shard_group")  # fmt: skip
    broken.require(strategy.tp == 1 or strategy.sequence_parallel, "torchtitan's tensor parallelism splits norms over "
                   "the sequence.", where="sequence_parallel")  # fmt: skip
    broken.require(strategy.cp == 1 or strategy.context_kind in ROTATE, "torch's context parallelism rotates or "
                   f"gathers keys and values, not {strategy.context_kind}.", where="context_kind")  # fmt: skip
    split = (1, strategy.tp) if strategy.ep > 1 or not model.mixture else (strategy.tp,)
    broken.require(strategy.etp in split, f"etp({strategy.etp}): with ep({strategy.ep}) and tp({strategy.tp}) "
                   f"torchtitan takes {' or '.join(map(str, sorted(set(split))))}.", where="etp")  # fmt: skip
    broken.require(strategy.recompute in ("none", "full"), f"recompute = {strategy.recompute}: torchtitan's selective "
                   "modes keep other tensors.", where="recompute", hint="Choose none or full.")  # fmt: skip
    broken.require(strategy.offload == "none" or (strategy.offload == "parameters" and strategy.zero == 3),
                   f"offload = {strategy.offload}: fully_shard's CPU offload takes parameters, gradients and states "
                   "together (offload = parameters, zero = 3).", where="offload")  # fmt: skip
    for name in ("overlap_grad_reduce", "overlap_param_gather"):
        broken.require(getattr(strategy, name) is not False, f"{name}: fully_shard always overlaps.", where=name)
    broken.require(not strategy.overlap_moe or strategy.schedule == "dualpipev", "torchtitan overlaps experts under "
                   "DualPipeV only.", where="overlap_moe")  # fmt: skip
    broken.require(run.precision in PRECISIONS, f"{run.precision} is not written: its recipe is the model code's "
                   f"choice. Choose from {', '.join(PRECISIONS)}.", where="precision")  # fmt: skip
    broken.require(run.optimizer in ("adam", "adamw"), f"torchtitan has Adam and AdamW, not {run.optimizer}.",
                   where="optimizer")  # fmt: skip
    broken.require(run.seq_len > 0, "the sequence length is not said.", where="seq_len")
    broken.raise_if_any()


def _training(strategy: Strategy, run: Run) -> dict[str, Any]:
    """Batches in sequences: under a pipeline one call of the schedule takes a replica's whole share of the step."""
    share = run.global_batch // strategy.dp
    offload = {"enable_cpu_offload": True} if strategy.offload == "parameters" else {}
    return {
        **offload,
        "local_batch_size": share if strategy.pp > 1 else strategy.micro_batch,
        "global_batch_size": run.global_batch,
        "seq_len": run.seq_len,
        "mixed_precision_param": {"bf16": "bfloat16", "fp32": "float32"}[run.precision],
    }


def _parallelism(strategy: Strategy, layers: int) -> dict[str, Any]:
    group = strategy.shard_group or strategy.dp
    found: dict[str, Any] = {
        "data_parallel_replicate_degree": strategy.dp // group if strategy.zero else strategy.dp,
        "data_parallel_shard_degree": group if strategy.zero else 1,
    }
    if strategy.zero:
        kept = strategy.zero == 2 or not strategy.reshard_after_forward
        found["fsdp_reshard_after_forward"] = "never" if kept else "always"
    found["tensor_parallel_degree"] = strategy.tp
    if strategy.tp > 1:
        found["enable_async_tensor_parallel"] = bool(strategy.overlap_tp)
    if strategy.cp > 1:
        found |= {"context_parallel_degree": strategy.cp,
                  "context_parallel_rotate_method": ROTATE[strategy.context_kind]}  # fmt: skip
    if strategy.ep > 1:
        found["expert_parallel_degree"] = strategy.ep
    if strategy.etp > 1:
        found["expert_tensor_parallel_degree"] = strategy.etp
    found["pipeline_parallel_degree"] = strategy.pp
    if strategy.pp > 1:
        counts = layers_of_stages(layers, strategy.stages, strategy.layers_per_stage)
        found |= {
            "pipeline_parallel_schedule": SCHEDULES[strategy.schedule],
            "pipeline_parallel_microbatch_size": strategy.micro_batch,
            "module_fqns_per_model_part": _modules(counts),
        }
        if strategy.schedule == "dualpipev":
            found["pipeline_parallel_expert_parallel_overlap"] = bool(strategy.overlap_moe)
    return found


def _modules(counts: tuple[int, ...]) -> list[list[str]]:
    """Names of the modules of each stage, as generate_llm_fqn_per_model_part makes them."""
    starts = [sum(counts[:index]) for index in range(len(counts))]
    parts = [[f"layers.{start + i}" for i in range(count)] for start, count in zip(starts, counts, strict=True)]
    return [["tok_embeddings", *parts[0]], *parts[1:-1], [*parts[-1], "norm", "output"]]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return str(value) if isinstance(value, int) else f'"{value}"'


def load(text: str, *, path: str = "job.toml", devices: int, layers: int = 0) -> Imported:
    """The strategy and the run that a job configuration says, on a number of devices.

    `layers` is the model's number of layers, which a split by `pipeline_parallel_layers_per_stage` refers to. Raises
    InputError with every setting that cannot be read, contradicts another or changes the cost unread.
    """
    said = said_in_toml(text, path)
    degrees = {name: said.count(f"parallelism.{key}", 1) for name, key in (
        ("tp", "tensor_parallel_degree"), ("pp", "pipeline_parallel_degree"), ("cp", "context_parallel_degree"),
        ("ep", "expert_parallel_degree"), ("etp", "expert_tensor_parallel_degree"))}  # fmt: skip
    fields: dict[str, Any] = {**degrees, **_replicas(said, devices, degrees)}
    fields |= _stages(said, degrees["pp"], layers)
    kinds = {word: kind for kind, word in ROTATE.items()}
    kind = said.choice("parallelism.context_parallel_rotate_method", kinds, "all-gather")
    fields["context_kind"] = kind if degrees["cp"] > 1 else "ring"
    if said.truth("training.enable_cpu_offload"):
        fields["offload"] = "parameters"
    asynchronous = [said.truth(f"{table}.enable_async_tensor_parallel") for table in ("parallelism", "compile")]
    fields["overlap_tp"] = any(asynchronous)
    fields["sequence_parallel"] = said.truth("parallelism.enable_sequence_parallel", True) or degrees["tp"] == 1
    overlaps = said.truth("parallelism.pipeline_parallel_expert_parallel_overlap", True)
    fields["overlap_moe"] = overlaps and fields["schedule"] == "dualpipev"
    # torchtitan checkpoints every second layer where the file does not say (job_config.py ActivationCheckpoint.mode).
    mode = said.get("activation_checkpoint.mode")
    if mode not in ("none", "full"):
        shown = "selective (its default)" if mode is None else str(mode)[:40]
        said.bad("activation_checkpoint.mode", f"{shown} is not modelled.", "Say none or full.")
    fields["recompute"] = mode
    run, fields["micro_batch"] = _batches(said, fields["dp"], degrees["pp"])
    optimizer = said.choice("optimizer.name", {"Adam": "adam", "AdamW": "adamw"}, "adamw")
    precision = said.choice("training.mixed_precision_param", {"bfloat16": "bf16", "float32": "fp32"}, "bf16")
    said.choice("training.dtype", {"float32": "fp32"}, "fp32")
    run |= {"framework": "torchtitan", "precision": precision, "optimizer": optimizer}
    notes = said.finish(_COSTLY, silent=lambda key: key.partition(".")[0] in ("job", "metrics", "checkpoint", "model"))
    if degrees["ep"] == 1 and degrees["tp"] > 1 == degrees["etp"]:
        notes.append("without expert parallelism torchtitan splits experts over tp too: for a mixture say etp = tp.")
    return Imported(strategy=Strategy(overlap_grad_reduce=True, overlap_param_gather=True, **fields), run=run,
                    notes=tuple(notes))  # fmt: skip


def _replicas(said: Said, devices: int, degrees: dict[str, int]) -> dict[str, Any]:
    """dp, ZeRO stage and shard group from the two data-parallel degrees; -1 is what the others leave."""
    key, policy = "parallelism.data_parallel_shard_degree", "parallelism.fsdp_reshard_after_forward"
    taken = degrees["tp"] * degrees["pp"] * degrees["cp"]
    copies = said.count("parallelism.data_parallel_replicate_degree", 1)
    shard = said.get(key)
    shard = max(devices // (taken * copies), 1) if shard in (None, -1) else said.count(key, 1)
    if taken * copies * shard != devices:
        said.broken.add(f"tp * pp * cp * replicas * shards = {taken * copies * shard}, not {devices} devices.",
                        where="--devices")  # fmt: skip
    keeps = said.choice(policy, {"always": False, "never": True, "default": degrees["pp"] > 1}, degrees["pp"] > 1)
    if shard == 1 and degrees["cp"] == 1:
        return {"dp": copies, "zero": 0}
    zero = 2 if keeps and degrees["pp"] > 1 else 3
    return {"dp": copies * shard, "zero": zero, "reshard_after_forward": not keeps or zero == 2,
            "shard_group": shard if copies > 1 else 0}  # fmt: skip


def _stages(said: Said, pp: int, layers: int) -> dict[str, Any]:
    """Schedule, virtual stages and the split of layers."""
    words = {word: name for name, word in SCHEDULES.items()}
    schedule = said.choice("parallelism.pipeline_parallel_schedule", words, "1f1b")
    parts = said.get("parallelism.module_fqns_per_model_part")
    per_stage = said.count("parallelism.pipeline_parallel_layers_per_stage", 0)
    ends = [said.count(f"parallelism.pipeline_parallel_{end}_stage_less_layers", 1, low=0) for end in ("first", "last")]
    if pp == 1:
        return {"schedule": "1f1b"}
    if parts is not None:
        counts = _counts(parts)
    else:
        virtual = -(-(layers + sum(ends)) // per_stage) if per_stage else pp * (1 if schedule in ONE_STAGE else 2)
        counts = _generated(virtual, layers, ends)
    where = "parallelism.module_fqns_per_model_part" if parts is not None else "parallelism.pipeline_parallel_degree"
    vp, rest = divmod(len(counts), pp)
    if not counts or rest or (vp == 1) != (schedule in ONE_STAGE):
        said.bad(where, f"{sum(counts) or layers or 'unknown'} layers do not split over pp({pp}) ranks for "
                 f"{SCHEDULES[schedule]}.", "" if layers or parts else "--layers says the model's layers.")  # fmt: skip
        return {"schedule": schedule}
    return {"schedule": schedule, "vp": vp, "layers_per_stage": split_of(counts)}


def _counts(parts: Any) -> tuple[int, ...]:
    """Transformer layers of each part; () where they are not lists of module names in order."""
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        return ()
    names = [str(name) for part in parts for name in part if str(name).startswith("layers.")]
    if names != [f"layers.{index}" for index in range(len(names))]:
        return ()
    return tuple(sum(str(name).startswith("layers.") for name in part) for part in parts)


def _generated(stages: int, layers: int, ends: list[int]) -> tuple[int, ...]:
    """Layers of each stage as generate_llm_fqn_per_model_part deals them; () where it refuses."""
    base, extra = divmod(layers + sum(ends), stages)
    if not layers or max(ends) > base or stages > MAX_STAGES:
        return ()
    counts = [base + (index < extra) for index in range(stages)]
    counts[0] -= ends[0]
    counts[-1] -= ends[1]
    return tuple(counts)


def _batches(said: Said, dp: int, pp: int) -> tuple[dict[str, Any], int]:
    """The run's batch and length, and the micro-batch."""
    if "training.num_tokens_per_train_step" in said.entries:
        return _batches_in_tokens(said, dp, pp)
    local = said.count("training.local_batch_size", 8)
    key = "training.global_batch_size"
    total = dp * local if said.get(key) in (None, -1) else said.count(key, dp * local)
    micro = said.count("parallelism.pipeline_parallel_microbatch_size", 1)
    if pp > 1 and total != dp * local:
        said.bad(key, f"{total} is not dp({dp}) * local_batch_size({local}) = {dp * local}: a pipeline drained between "
                 "accumulation steps is not modelled.")  # fmt: skip
    return {"global_batch": total, "seq_len": said.count("training.seq_len", 2048)}, micro if pp > 1 else local


def _batches_in_tokens(said: Said, dp: int, pp: int) -> tuple[dict[str, Any], int]:
    """The same where it is said in tokens, as later versions do."""
    keys = {name: f"training.{key}" for name, key in (
        ("step", "num_tokens_per_train_step"), ("each", "num_tokens_per_microbatch_per_dp_rank"),
        ("length", "max_context_length"))}  # fmt: skip
    step, each, length = (said.count(key) for key in keys.values())
    count = said.count("parallelism.num_pp_microbatches", 0) or said.count("training.num_pp_microbatches", 0)
    if not (step and each and length) or step % length or each % length:
        said.bad(keys["step"], f"{step} and {keys['each']}({each}) must be multiples of {keys['length']}({length}).")
        return {"global_batch": 1}, 1
    if pp > 1 and count and step != count * each * dp:
        said.bad(keys["step"], f"{step} is not dp({dp}) * num_pp_microbatches({count}) * {each} = {count * each * dp}: "
                 "a pipeline drained between accumulation steps is not modelled.")  # fmt: skip
    return {"global_batch": step // length, "seq_len": length}, each // length
