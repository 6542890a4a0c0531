"""Megatron-LM flags, as `megatron/training/arguments.py` of NVIDIA/Megatron-LM@d98e8a6 reads them."""

from __future__ import annotations

import shlex
from typing import Any

from simulator.errors import Complaints, did_you_mean
from simulator.plan.menus import PP_INSIDE_DP
from simulator.spec.run import Run
from simulator.spec.strategy import AXES, Strategy

VERSION = "Megatron-LM @ d98e8a6"
SHARDING = {1: "optim", 2: "optim_grads", 3: "optim_grads_params"}
_DEGREES = {
    "tensor-model-parallel-size": "tp", "pipeline-model-parallel-size": "pp", "context-parallel-size": "cp",
    "expert-model-parallel-size": "ep", "expert-tensor-parallel-size": "etp", "micro-batch-size": "micro_batch",
    "num-virtual-stages-per-pipeline-rank": "vp", "recompute-num-layers": "recompute_layers",
    "microbatch-group-size-per-virtual-pipeline-stage": "group_size",
}  # fmt: skip
WRITTEN = ("fp32", "fp16", "bf16")
"""Precisions that this export writes."""
_RUN = {"global-batch-size": "global_batch", "seq-length": "seq_len"}
_CONTEXT = {"ring": "p2p", "all-gather": "all_gather", "ulysses": "a2a"}
_KINDS = {word: kind for kind, word in _CONTEXT.items()}
_PLAIN = {"sequence-parallel", "use-distributed-optimizer", "overlap-grad-reduce", "overlap-param-gather",
          "use-tp-pp-dp-mapping", "use-megatron-fsdp", "bf16", "fp16"}  # fmt: skip


def dump(strategy: Strategy, run: Run) -> str:
    """The flags of a strategy, one a line, after a line that names the version.

    Raises InputError for what Megatron-LM does not run, with every reason.
    """
    _check(strategy, run)
    lines = [f"# {VERSION}"]
    for flag, name in _DEGREES.items():
        value = getattr(strategy, name)
        if value > 1 or name in ("tp", "pp", "micro_batch"):
            lines.append(f"--{flag} {value}")
    lines += [f"--global-batch-size {run.global_batch}", f"--seq-length {run.seq_len}"]
    lines += ["--bf16" if run.precision != "fp16" else "--fp16"] if run.precision != "fp32" else []
    lines += ["--sequence-parallel"] if strategy.sequence_parallel and strategy.tp > 1 else []
    lines += [f"--cp-comm-type {_CONTEXT[strategy.context_kind]}"] if strategy.cp > 1 else []
    lines += ["--use-tp-pp-dp-mapping"] if strategy.order == PP_INSIDE_DP else []
    if strategy.zero:
        lines.append("--use-distributed-optimizer")
    if strategy.zero >= 2:
        lines += ["--use-megatron-fsdp", f"--data-parallel-sharding-strategy {SHARDING[strategy.zero]}"]
    lines += ["--overlap-grad-reduce"] if strategy.overlap_grad_reduce else []
    lines += ["--overlap-param-gather"] if strategy.overlap_param_gather else []
    if strategy.recompute == "full":
        method = "block" if strategy.recompute_layers else "uniform"
        lines += ["--recompute-granularity full", f"--recompute-method {method}"]
        lines += [] if strategy.recompute_layers else ["--recompute-num-layers 1"]
    elif strategy.recompute != "none":
        modules = strategy.recompute_modules or ("core_attn",)
        lines += ["--recompute-granularity selective", f"--recompute-modules {' '.join(modules)}"]
    return "\n".join(lines) + "\n"


def _check(strategy: Strategy, run: Run) -> None:
    broken = Complaints()
    broken.require(strategy.schedule in ("1f1b", "interleaved"), f"Megatron-LM runs 1f1b and interleaved, not "
                   f"{strategy.schedule}.", where="schedule")  # fmt: skip
    broken.require(strategy.order in (AXES, PP_INSIDE_DP), f"Megatron-LM places ranks tp-cp-ep-dp-pp or "
                   f"tp-cp-ep-pp-dp, not {'-'.join(strategy.order)}.", where="order")  # fmt: skip
    broken.require(not strategy.layers_per_stage, "an uneven split by hand is not written: Megatron-LM takes it as a "
                   "layout of named layers.", where="layers_per_stage")  # fmt: skip
    broken.require(not strategy.shard_group, "Megatron-LM's flags here have no shard group.", where="shard_group")
    broken.require(run.precision in WRITTEN, f"{run.precision} is not written: its recipe and format are flags that "
                   f"a strategy does not choose. Choose from {', '.join(WRITTEN)}.", where="precision")  # fmt: skip
    broken.require(run.seq_len > 0, "the sequence length is not said.", where="seq_len")
    broken.raise_if_any()


def load(text: str, *, devices: int) -> tuple[Strategy, dict[str, Any]]:
    """The strategy and the run's settings that some flags say, on a number of devices.

    Raises InputError with every flag that is unknown or has no whole number where one belongs.
    """
    broken = Complaints()
    words = shlex.split(text, comments=True)
    said: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            said[name] = [value] if equals else []
        elif said:
            said[next(reversed(said))].append(word)
        else:
            broken.add(f"{word!r} stands before the first flag.")
    known = {*_DEGREES, *_RUN, *_PLAIN, "cp-comm-type", "data-parallel-sharding-strategy", "recompute-granularity",
             "recompute-method", "recompute-modules"}  # fmt: skip
    for name in said:
        broken.require(name in known, f"--{name} is not read here.", hint=did_you_mean(name, known))
    fields, run = (_numbers(broken, said, names) for names in (_DEGREES, _RUN))
    broken.raise_if_any()
    fields |= _options(said)
    if "precision" not in run and ("bf16" in said or "fp16" in said):
        run["precision"] = "bf16" if "bf16" in said else "fp16"
    taken = fields.get("tp", 1) * fields.get("pp", 1) * fields.get("cp", 1)
    broken.require(devices % taken == 0, f"tp * pp * cp = {taken} does not divide {devices} devices.", where="devices")
    broken.raise_if_any()
    return Strategy(dp=devices // taken, **fields), run


def _numbers(broken: Complaints, said: dict[str, list[str]], names: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for flag, name in names.items():
        values = said.get(flag)
        if values is None:
            continue
        if len(values) == 1 and values[0].isdecimal():
            found[name] = int(values[0])
        else:
            broken.add(f"--{flag} needs one whole number, not {' '.join(values)!r}.")
    return found


def _options(said: dict[str, list[str]]) -> dict[str, Any]:
    alone = said.get("tensor-model-parallel-size", ["1"])[0] == "1"
    fields: dict[str, Any] = {"sequence_parallel": "sequence-parallel" in said or alone}
    if "cp-comm-type" in said:
        fields["context_kind"] = _KINDS[said["cp-comm-type"][0]]
    if "use-tp-pp-dp-mapping" in said:
        fields["order"] = PP_INSIDE_DP
    kind = said.get("data-parallel-sharding-strategy", ["optim" if "use-distributed-optimizer" in said else ""])[0]
    fields["zero"] = {word: stage for stage, word in SHARDING.items()}.get(kind, 0)
    for flag in ("overlap-grad-reduce", "overlap-param-gather"):
        if flag in said:
            fields[flag.replace("-", "_")] = True
    if int(said.get("num-virtual-stages-per-pipeline-rank", ["1"])[0]) > 1:
        fields["schedule"] = "interleaved"
    grain = said.get("recompute-granularity", ["none"])[0]
    modules = tuple(said.get("recompute-modules", ()))
    if grain == "full":
        fields["recompute"] = "full"
        if said.get("recompute-method", [""])[0] == "uniform":
            fields["recompute_layers"] = 0
    elif grain == "selective":
        plain = modules in ((), ("core_attn",))
        fields |= {"recompute": "selective"} if plain else {"recompute": "modules", "recompute_modules": modules}
    return fields
