"""Why a number is what it is: each term of an estimate with its formula, the values in it and the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from simulator.errors import InputError, Problem, did_you_mean
from simulator.result import Estimate

Values = Mapping[str, Any]

FORMULAS: Mapping[str, tuple[str, str]] = {
    "step_time_s": ("sum of time.*: the rank that finishes last", "simulator/breakdown.py time_of"),
    "tokens_per_s": ("global_batch * (seq_len + target_seq_len) / step_time_s", "definition"),
    "mfu": ("model_flops_per_step / (peak FLOP/s of all devices * step_time_s)", "Chowdhery 2022 App. B"),
    "hfu": ("executed FLOPs, recomputed ones too / (peak of all devices * step_time_s)", "Chowdhery 2022 App. B"),
    "model_flops_per_step": ("global_batch * model FLOPs of one sequence", "simulator/arch/flops.py"),
    "peak_memory_bytes": ("sum of memory.*: the fullest pipeline rank", "simulator/parallel/memory.py"),
    "time.gemm": ("micro_batches * sum over linear layers of the tile-and-wave GEMM time, F + B + W",
                  "simulator/cluster/device.py gemm_time_s; constants: hardware/calibration"),
    "time.grouped_gemm": ("micro_batches * sum over expert layers of the grouped GEMM time",
                          "simulator/cluster/grouped.py trained_experts_time_s"),
    "time.attention": ("micro_batches * fused attention cores, forward and backward",
                       "simulator/cluster/device.py attention_time_s; FLOPs: Dao 2022"),
    "time.pointwise": ("micro_batches * bytes moved by norms, activations, dropout, loss / achievable bandwidth",
                       "simulator/cluster/device.py pointwise_time_s"),
    "time.lookup": ("micro_batches * embedding rows gathered, scattered", "simulator/cluster/device.py lookup_time_s"),
    "time.recompute": ("micro_batches * forward of what recomputation drops, communication included",
                       "Korthikanti 2022 sec. 5"),
    "time.optimizer": ("bytes of gradients and optimizer states of the rank / achievable bandwidth",
                       "simulator/parallel/states.py optimizer_traffic_bytes"),
    "time.tp": ("collectives, two forward and two backward a layer; max(c - w, share * c) beside a GEMM",
                "Shoeybi 2019 sec. 3; Korthikanti 2022 sec. 4.2.2"),
    "time.cp": ("exposed key/value exchange of context parallelism", "Liu 2023; Llama 3 sec. 3.3.2; Jacobs 2023"),
    "time.ep": ("exposed all-to-alls of routed tokens: two forward, two backward a layer", "Fedus 2022 sec. 5.4"),
    "time.etp": ("exposed gather and scatter inside expert-tensor groups", "Megatron-Core MoE documentation"),
    "time.dp": ("exposed gradient reduction and parameter gathering over replicas",
                "Rajbhandari 2020 sec. 7; simulator/parallel/step_end.py"),
    "time.bubble": ("step time less the rank's own work: waiting for other stages and for sends",
                    "simulator/schedule/engine.py"),
    "time.host": ("waiting for kernel launches: launches * launch_s where kernels are shorter",
                  "framework profile launch_s"),
    "memory.weights": ("bytes per parameter * parameters of the rank / ZeRO-3 shards", "Rajbhandari 2020 sec. 3.1"),
    "memory.gradients": ("gradient bytes * parameters of the rank / ZeRO-2 shards", "Rajbhandari 2020 sec. 3.1"),
    "memory.optimizer": ("(master + moments) bytes * parameters / ZeRO-1 shards", "Rajbhandari 2020 sec. 3.1"),
    "memory.gathered_parameters": ("2 * largest segment: the one at work and the one prefetched; all where kept",
                                   "Zhao 2023 (FSDP)"),
    "memory.activations": ("saved tensors of every micro-batch in flight when the rank holds its most",
                           "Korthikanti 2022 Table 2; simulator/schedule/memory.py"),
    "memory.working_set": ("the task then at work: its recomputed segment + its largest gradient",
                           "simulator/parallel/memory.py"),
    "memory.optimizer_step": ("fp32 copies of 16-bit gradients, less what forward and backward held in their place",
                              "simulator/parallel/states.py optimizer_step_bytes"),
    "memory.communication_buffers": ("4 pipeline boundaries + 2 gradient buckets where sharded",
                                     "simulator/parallel/memory.py"),
    "memory.fragmentation": ("allocated * f / (1 - f)", "framework profile fragmentation_fraction"),
    "memory.context": ("context, communication library and workspaces outside the allocator",
                       "framework profile context_bytes"),
    "traffic.tp": ("wire bytes of one rank's tensor-parallel collectives per step", "facts d5"),
    "traffic.cp": ("wire bytes of context parallelism", "facts g1-g6"),
    "traffic.pp": ("activations forward and gradients backward across both borders", "Narayanan 2021 sec. 3.2"),
    "traffic.dp": ("wire bytes of gradient reduction and parameter gathering", "facts c3"),
    "traffic.ep": ("wire bytes of token all-to-alls", "facts f3"),
    "traffic.etp": ("wire bytes inside expert-tensor groups", "facts f3"),
}  # fmt: skip

_UNITS = {"time": "s", "memory": "B", "traffic": "B"}


def terms(answer: Estimate) -> dict[str, tuple[float, str]]:
    """Every number of an estimate that can be expanded, with its unit."""
    found: dict[str, tuple[float, str]] = {
        "step_time_s": (answer.step_time_s, "s"),
        "tokens_per_s": (answer.tokens_per_s, "tokens/s"),
        "mfu": (answer.mfu, ""),
        "hfu": (answer.hfu, ""),
        "model_flops_per_step": (answer.model_flops_per_step, "FLOP"),
        "peak_memory_bytes": (answer.peak_memory_bytes, "B"),
    }
    groups = (("time", answer.time.parts), ("memory", answer.memory.parts), ("traffic", answer.traffic_bytes))
    for group, parts in groups:
        found |= {f"{group}.{name}": (float(value), _UNITS[group]) for name, value in parts.items()}
    return found


def explain_term(answer: Estimate, name: str) -> dict[str, Any]:
    """One number expanded: value, unit, formula, the values in it, source. Raises InputError for an unknown name."""
    known = terms(answer)
    if name not in known:
        hint = did_you_mean(name, known) or f"Choose from: {', '.join(known)}."
        raise InputError([Problem(f"{name!r} is no number of this estimate.", "--why", hint)])
    value, unit = known[name]
    formula, source = FORMULAS[name]
    return {"term": name, "value": value, "unit": unit, "formula": formula, "values": _values(answer, name),
            "source": source}  # fmt: skip


def _values(answer: Estimate, name: str) -> dict[str, Any]:
    """The numbers that stand in a term's formula."""
    run, strategy = answer.run, answer.strategy
    totals: Mapping[str, Callable[[], dict[str, Any]]] = {
        "step_time_s": lambda: dict(answer.time.parts),
        "peak_memory_bytes": lambda: dict(answer.memory.parts),
        "tokens_per_s": lambda: {k: run[k] for k in ("global_batch", "seq_len", "target_seq_len")}
        | {"step_time_s": answer.step_time_s},
        "mfu": lambda: {"model_flops_per_step": answer.model_flops_per_step, "devices": answer.devices,
                        "step_time_s": answer.step_time_s, "convention": answer.flops_convention},
        "model_flops_per_step": lambda: {"global_batch": run["global_batch"], "convention": answer.flops_convention},
    }  # fmt: skip
    if name in totals:
        return totals[name]()
    degrees = {k: strategy[k] for k in ("tp", "pp", "dp", "cp", "ep", "micro_batch", "recompute", "zero")}
    if strategy["recompute_layers"]:
        degrees["recompute_layers"] = strategy["recompute_layers"]
    return degrees | {"micro_batches": run["global_batch"] // (strategy["dp"] * strategy["micro_batch"])}
