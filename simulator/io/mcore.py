"""A strategy in the words of Megatron-Core, which Megatron-LM's flags and Megatron-Bridge's configuration share.

Names are those of the dataclass fields (ModelParallelConfig, TransformerConfig, DistributedDataParallelConfig); the
two formats spell and group them differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from simulator.errors import Complaints
from simulator.io.imported import refuse_unwritten, split_of
from simulator.io.said import Said
from simulator.plan.menus import PP_INSIDE_DP
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import AXES, RECOMPUTE_MODULES, Strategy

SHARDING = {1: "optim", 2: "optim_grads", 3: "optim_grads_params"}
CONTEXT = {"ring": "p2p", "all-gather": "all_gather", "ulysses": "a2a"}
MODULES = tuple(name for name in RECOMPUTE_MODULES if name != "attention")
"""What --recompute-modules takes; the whole attention block is not among it."""
DEGREES = {
    "tp": "tensor_model_parallel_size", "pp": "pipeline_model_parallel_size", "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size", "etp": "expert_tensor_parallel_size",
}  # fmt: skip
_OVERLAPS = {
    "overlap_grad_reduce": "overlap_grad_reduce", "overlap_param_gather": "overlap_param_gather",
    "overlap_tp": "tp_comm_overlap", "overlap_moe": "overlap_moe_expert_parallel_comm",
}  # fmt: skip
_WRITTEN = (
    *DEGREES, *_OVERLAPS, "dp", "vp", "schedule", "micro_batch", "zero", "shard_group", "sequence_parallel",
    "context_kind", "recompute", "recompute_modules", "recompute_layers", "order", "layers_per_stage", "group_size",
    "global_batch", "seq_len", "precision", "optimizer", "dropout", "capacity_factor",
)  # fmt: skip
_FP8 = {"delayed": "fp8", "tensorwise": "fp8", "blockwise": "fp8", "mxfp8": "mxfp8"}
MAX_STAGES = 10_000
MAX_LAYOUT = 100_000
"""Characters of a layout written out; the deepest models have some hundred layers."""
COSTLY = {
    "use_torch_fsdp2": "torch's FSDP in place of Megatron's own; zero = 3 says it in a strategy.",
    "hierarchical_context_parallel_sizes": "context parallelism in two levels is not modelled.",
    "account_for_embedding_in_pipeline_split": "a layer's place is kept for the embedding; say a layout.",
    "account_for_loss_in_pipeline_split": "a layer's place is kept for the loss; say a layout.",
    "rampup_batch_size": "the batch grows over the run; say one batch.",
    "cpu_offloading": "activations in host memory are not modelled.",
    "optimizer_cpu_offload": "optimizer states in host memory are not modelled.",
    "use_precision_aware_optimizer": "other dtypes of the optimizer states; optimizer = adam-bf16 is the nearest.",
    "distribute_saved_activations": "checkpointed activations spread over tp are not modelled.",
    "fine_grained_activation_offloading": "activations in host memory are not modelled.",
}
"""Settings that change step time or memory and have no field in a strategy."""


def check(strategy: Strategy, run: Run, *, target: str, precisions: tuple[str, ...]) -> None:
    """Raises InputError with every reason for which Megatron-Core's settings cannot say this strategy."""
    broken = Complaints()
    refuse_unwritten(broken, run, strategy, target=target, written=_WRITTEN)
    wanted = "interleaved" if strategy.vp > 1 else "1f1b"
    broken.require(strategy.schedule == wanted or strategy.pp == 1, f"{target} runs 1f1b, and interleaved with virtual "
                   f"stages: vp({strategy.vp}) means {wanted}, not {strategy.schedule}.", where="schedule")  # fmt: skip
    broken.require(strategy.order in (AXES, PP_INSIDE_DP), f"{target} places ranks {'-'.join(AXES)} or "
                   f"{'-'.join(PP_INSIDE_DP)}, not {'-'.join(strategy.order)}.", where="order")  # fmt: skip
    broken.require(strategy.zero < 2 or strategy.order == AXES, "Megatron-FSDP (zero >= 2) does not run with "
                   f"{'-'.join(PP_INSIDE_DP)} placement.", where="order")  # fmt: skip
    broken.require(not strategy.shard_group or strategy.zero == 1, "a shard group is the distributed optimizer's: "
                   f"zero = 1, not {strategy.zero}.", where="shard_group")  # fmt: skip
    named = strategy.recompute_layers
    if isinstance(named, tuple):
        broken.add(f"{target} recomputes as many layers of every stage (recompute_num_layers is one number), not "
                   f"{','.join(map(str, named))}.", where="recompute_layers",
                   hint=f"recompute_layers = {max(named)} needs no more memory and more time; `shardwise plan --fix "
                        "recompute_stages=alike` looks for the best such strategy.")  # fmt: skip
    others = sorted(set(strategy.recompute_modules) - set(MODULES))
    broken.require(not others, f"{target} does not recompute {', '.join(others)} by name.", where="recompute_modules",
                   hint=f"Choose from: {', '.join(MODULES)}.")  # fmt: skip
    broken.require(run.precision in precisions, f"{run.precision} is not written: its recipe and format are flags that "
                   f"a strategy does not choose. Choose from {', '.join(precisions)}.", where="precision")  # fmt: skip
    broken.require(run.optimizer in ("adam", "adamw", "sgd"), f"{target} is told adam (which is AdamW) or sgd here, "
                   f"not {run.optimizer}.", where="optimizer")  # fmt: skip
    broken.require(run.seq_len > 0, "the sequence length is not said.", where="seq_len")
    broken.raise_if_any()


def settings_of(strategy: Strategy, run: Run, model: ModelSpec) -> dict[str, Any]:
    """The settings of a checked strategy that differ from Megatron-Core's defaults, by field name, in a fixed order."""
    found: dict[str, Any] = {}
    for name, key in DEGREES.items():
        value = getattr(strategy, name)
        # Where it is not told, Megatron-Core splits experts over tp too (arguments.py, expert_tensor_parallel_size).
        if value > 1 or name in ("tp", "pp") or (name == "etp" and model.mixture and strategy.tp > 1):
            found[key] = value
    found |= {"micro_batch_size": strategy.micro_batch, "global_batch_size": run.global_batch}
    found["seq_length"] = run.seq_len
    if strategy.sequence_parallel and strategy.tp > 1:
        found["sequence_parallel"] = True
    if strategy.cp > 1:
        found["cp_comm_type"] = CONTEXT[strategy.context_kind]
    if strategy.layers_per_stage:
        found["pipeline_model_parallel_layout"] = layout_text(strategy.layers_per_stage, model.head.mtp_layers)
    elif strategy.vp > 1:
        found["virtual_pipeline_model_parallel_size"] = strategy.vp
    if strategy.group_size and strategy.vp > 1:
        found["microbatch_group_size_per_vp_stage"] = strategy.group_size
    if strategy.order == PP_INSIDE_DP:
        found["use_tp_pp_dp_mapping"] = True
    return found | _sharding_settings(strategy) | _recompute_settings(strategy) | _run_settings(run)


def _sharding_settings(strategy: Strategy) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if strategy.zero:
        found["use_distributed_optimizer"] = True
    if strategy.shard_group:
        found["num_distributed_optimizer_instances"] = strategy.dp // strategy.shard_group
    if strategy.zero >= 2:
        found |= {"use_megatron_fsdp": True, "data_parallel_sharding_strategy": SHARDING[strategy.zero]}
    return found | {key: True for name, key in _OVERLAPS.items() if getattr(strategy, name)}


def _recompute_settings(strategy: Strategy) -> dict[str, Any]:
    if strategy.recompute == "none":
        return {}
    if strategy.recompute == "full":
        some = strategy.recompute_layers
        return {"recompute_granularity": "full", "recompute_method": "block" if some else "uniform",
                "recompute_num_layers": some or 1}  # fmt: skip
    modules = strategy.recompute_modules if strategy.recompute == "modules" else ("core_attn",)
    return {"recompute_granularity": "selective", "recompute_modules": list(modules)}


def _run_settings(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {"optimizer": "sgd" if run.optimizer == "sgd" else "adam"}
    if run.dropout is not None:
        found |= {"attention_dropout": run.dropout, "hidden_dropout": run.dropout}
    if run.capacity_factor:
        found |= {"moe_expert_capacity_factor": run.capacity_factor, "moe_pad_expert_input_to_capacity": True}
    return found


def strategy_of(said: Said, keys: Mapping[str, str], *, devices: int, layers: int, vp: int = 0) -> Strategy:
    """The strategy of what a file says; `keys` gives a format's spelling of each field name.

    dp is what tp, pp and cp leave of the devices. `layers` is the model's number of layers, 0 where unknown, `vp` that
    of virtual stages where it is said in another way. Problems are collected in `said`; the strategy means nothing
    while there are any.
    """
    fields: dict[str, Any] = {name: said.count(keys[key], 1) for name, key in DEGREES.items()}
    layers = said.count(keys["num_layers"], layers)
    mixture = said.count(keys["num_moe_experts"], 0) > 0 or fields["ep"] > 1
    if mixture and said.get(keys["expert_tensor_parallel_size"]) is None:
        fields["etp"] = fields["tp"]
    fields["micro_batch"] = said.count(keys["micro_batch_size"], 1)
    fields["sequence_parallel"] = said.truth(keys["sequence_parallel"]) or fields["tp"] == 1
    kinds = {word: kind for kind, word in CONTEXT.items()}
    fields["context_kind"] = said.choice(keys["cp_comm_type"], kinds, "ring")
    if said.truth(keys["use_tp_pp_dp_mapping"]):
        fields["order"] = PP_INSIDE_DP
    taken = fields["tp"] * fields["pp"] * fields["cp"]
    said.broken.require(devices % taken == 0, f"tp * pp * cp = {taken} does not divide {devices} devices.",
                        where="--devices")  # fmt: skip
    fields["dp"] = max(devices // taken, 1)
    fields |= _stages(said, keys, fields["pp"], layers, vp)
    fields |= _zero(said, keys, fields["dp"])
    fields |= {name: said.truth(keys[key]) for name, key in _OVERLAPS.items()}
    fields |= _recompute(said, keys)
    return Strategy(**fields)


def _stages(said: Said, keys: Mapping[str, str], pp: int, layers: int, vp: int) -> dict[str, Any]:
    """Virtual stages, the split of layers, and the schedule that they mean."""
    found: dict[str, Any] = {}
    layout_key = keys["pipeline_model_parallel_layout"]
    layout = said.get(layout_key)
    vp = said.count(keys["virtual_pipeline_model_parallel_size"], vp or 1)
    if layout is not None:
        counts = layout_counts(layout) if isinstance(layout, str) else ()
        if not counts or len(counts) % pp:
            said.bad(layout_key, f"{str(layout)[:60]!r} is no layout over a multiple of pp({pp}) stages.",
                     'As in "Et*3|(tt|)*29,tL": E embedding, t layer, L loss, | between stages.')  # fmt: skip
        else:
            vp, found["layers_per_stage"] = len(counts) // pp, split_of(counts)
    if pp * vp > MAX_STAGES:
        said.broken.add(f"pp({pp}) * vp({vp}) = {pp * vp:,} stages; at most {MAX_STAGES:,} are read.")
        return {}
    ends = [said.count(keys[f"num_layers_in_{end}_pipeline_stage"], 0) for end in ("first", "last")]
    if any(ends):
        where = keys["num_layers_in_first_pipeline_stage" if ends[0] else "num_layers_in_last_pipeline_stage"]
        split = _with_ends(ends, layers, pp, vp)
        if split:
            found["layers_per_stage"] = split_of(split)
        else:
            said.bad(where, f"{layers or 'unknown'} layers, {ends[0] or 'any'} in the first stage and "
                     f"{ends[1] or 'any'} in the last do not divide over pp({pp}) * vp({vp}) stages.",
                     "" if layers else "--layers says the model's layers.")  # fmt: skip
    group = said.count(keys["microbatch_group_size_per_vp_stage"], 0)
    if vp > 1:
        found |= {"vp": vp, "schedule": "interleaved", "group_size": 0 if group == pp else group}
    return found


def _with_ends(ends: list[int], layers: int, pp: int, vp: int) -> tuple[int, ...]:
    """Layers of each stage where the first and the last rank hold some number; () where they do not divide.

    Megatron-Core divides a rank's layers over its virtual stages (transformer_block.py get_num_layers_to_build).
    """
    given = [count for count in ends if count]
    middle, rest = divmod(layers - sum(given), max(pp - len(given), 1))
    ranks = [middle] * pp
    if ends[0]:
        ranks[0] = ends[0]
    if ends[1]:
        ranks[-1] = ends[1]
    if rest or middle < 0 or sum(ranks) != layers or any(count % vp for count in ranks):
        return ()
    return tuple(count // vp for _ in range(vp) for count in ranks)


def _zero(said: Said, keys: Mapping[str, str], dp: int) -> dict[str, Any]:
    stages = {"no_shard": 0, **{word: stage for stage, word in SHARDING.items()}}
    distributed = said.truth(keys["use_distributed_optimizer"])
    fsdp = said.truth(keys["use_megatron_fsdp"])
    kind = said.choice(keys["data_parallel_sharding_strategy"], stages, None)
    copies = said.count(keys["num_distributed_optimizer_instances"], 1)
    zero = kind if kind is not None and (fsdp or kind < 2) else int(distributed)
    if kind is not None and kind >= 2 and not fsdp:
        said.bad(keys["data_parallel_sharding_strategy"], f"needs {keys['use_megatron_fsdp']}.")
    if dp % copies:
        said.bad(keys["num_distributed_optimizer_instances"], f"{copies} does not divide dp({dp}).")
    return {"zero": zero, "shard_group": dp // copies if copies > 1 else 0}


def _recompute(said: Said, keys: Mapping[str, str]) -> dict[str, Any]:
    grain = said.choice(keys["recompute_granularity"], {"full": "full", "selective": "selective"}, "none")
    method = said.choice(keys["recompute_method"], {"uniform": "uniform", "block": "block"}, "")
    layers = said.count(keys["recompute_num_layers"], 0)
    modules = said.words(keys["recompute_modules"])
    for word in modules:
        if word not in MODULES:
            said.bad(keys["recompute_modules"], f"{word!r} is not modelled.", f"Choose from: {', '.join(MODULES)}.")
    if grain == "full":
        if not method:
            said.bad(keys["recompute_granularity"], f"full needs {keys['recompute_method']}, uniform or block.")
        if method == "uniform" and layers > 1:
            said.bad(keys["recompute_num_layers"], f"one input kept for {layers} layers is not modelled; 1 is.")
        return {"recompute": "full", "recompute_layers": layers if method == "block" else 0}
    if grain == "none" or modules in ((), ("core_attn",)):
        return {"recompute": grain}
    return {"recompute": "modules", "recompute_modules": modules}


def run_of(said: Said, keys: Mapping[str, str], framework: str) -> dict[str, Any]:
    """The fields of `Run` that a file says, but for the precision, which each format spells its own way."""
    batch = said.count(keys["global_batch_size"], 0)
    if not batch and keys["global_batch_size"] not in said.entries:
        said.broken.add(f"{keys['global_batch_size']} is not said: the sequences of a step are unknown.")
    optimizer = said.choice(keys["optimizer"], {"adam": "adamw", "sgd": "sgd"}, "adamw")
    found: dict[str, Any] = {"global_batch": batch, "framework": framework, "optimizer": optimizer}
    if length := said.count(keys["seq_length"], 0):
        found["seq_len"] = length
    dropouts = [said.number(keys[f"{part}_dropout"]) for part in ("attention", "hidden")]
    if dropouts[0] != dropouts[1] and None not in dropouts:
        said.bad(keys["hidden_dropout"], f"{dropouts[1]} is not attention's ({dropouts[0]}): one is modelled.")
    if said_dropouts := [value for value in dropouts if value is not None]:
        found["dropout"] = said_dropouts[0]
    capacity = said.number(keys["moe_expert_capacity_factor"])
    padded = said.truth(keys["moe_pad_expert_input_to_capacity"])
    if capacity is not None and not padded:
        said.bad(keys["moe_expert_capacity_factor"], "dropped tokens without padding to the capacity are not modelled.",
                 f"{keys['moe_pad_expert_input_to_capacity']} pads.")  # fmt: skip
    elif capacity is not None:
        found["capacity_factor"] = capacity
    return found


def fp8_precision(said: Said, form: str, recipe: str, fp4: str) -> str:
    """fp8, mxfp8 or nvfp4 by the keys of format and recipe; "" for none."""
    if said.get(fp4) is not None:
        return "nvfp4"
    meaning = said.choice(recipe, _FP8, "fp8")
    return meaning if said.get(form) is not None else ""


def layout_text(counts: tuple[int, ...], mtp_layers: int = 0) -> str:
    """Layers of each stage as Megatron-Core's layout, with the multi-token-prediction layers in the last stage.

    >>> layout_text((2, 3, 1), 1)
    'Ett|ttt|tmL'
    """
    return "E" + "|".join("t" * count for count in counts) + "m" * mtp_layers + "L"


def layout_counts(text: str) -> tuple[int, ...]:
    """Layers of each stage of a layout; () where it is none, or has layers other than the decoder's.

    Source: megatron/core/transformer/pipeline_parallel_layer_layout.py parse_str_to_list.

    >>> layout_counts("Et*3|(tt|)*2,t,L")
    (3, 2, 2, 1)
    """
    text = text.replace(",", "").replace(" ", "")
    for pattern in (r"\(([^)]+)\)\*(\d{1,6})", r"(.)\*(\d{1,6})"):
        if len(text) + sum(len(part) * int(times) for part, times in re.findall(pattern, text)) > MAX_LAYOUT:
            return ()
        text = re.sub(pattern, lambda found: found[1] * int(found[2]), text)
    return tuple(stage.count("t") for stage in text.split("|")) if re.fullmatch(r"E[t|]*m*L", text) else ()
