"""The page's state (a JSON object) turned into a model, cluster, run and strategy, politely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from simulator import catalog
from simulator.errors import Complaints, InputError, Problem, did_you_mean
from simulator.numbers import MAX_EXACT, divisors
from simulator.parallel.legal import attentions, expert_specs
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import OPTIMIZERS, PRECISIONS, Framework, Run
from simulator.spec.strategy import CONTEXT_KINDS, RECOMPUTE, SCHEDULES, Strategy

START: Mapping[str, Any] = {
    "model": "gpt3-175b", "cluster": "dgx-a100", "nodes": 128, "framework": "megatron-core", "global_batch": 1536,
    "seq_len": 2048, "precision": "bf16", "optimizer": "adamw", "tp": 8, "pp": 8, "cp": 1, "ep": 1, "etp": 1,
    "vp": 6, "zero": 0, "micro_batch": 1, "schedule": "interleaved", "recompute": "selective",
    "context_kind": "ring", "sequence_parallel": True,
}  # fmt: skip
"""What the page shows first: the estimate of the README."""
FIELDS = {
    **{name: kind for name, kind in get_type_hints(Run).items() if name in {"global_batch", "seq_len", "precision",
       "optimizer", "framework", "attention"}},
    **{name: kind for name, kind in get_type_hints(Strategy).items() if kind in {int, str, bool}},
    "model": str, "cluster": str, "nodes": int, "layers_per_stage": str, "order": str, "recompute_layers": int,
}  # fmt: skip
"""Every key of the state and its type; layers per stage are written as "26,14" (so are recomputed layers where stages
differ), the order as "tp-cp-ep-dp-pp".
"""
JOINED = {"layers_per_stage": ",", "recompute_layers": ",", "order": "-"}
"""Settings of several parts, and what stands between these."""
MAX_TEXT = {"layers_per_stage": 1024, "recompute_layers": 1024}
"""Characters of a text that may be longer than others."""
MAX_TASKS = 300_000
"""Tasks of one step that the page simulates (about 0.3 s)."""
_RUN = {entry.name for entry in fields(Run)}
_STRATEGY = {entry.name for entry in fields(Strategy)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one state asks about."""

    model: ModelSpec
    cluster: Cluster
    run: Run
    strategy: Strategy
    framework: Framework
    said: tuple[str, ...]


def read_case(state: Mapping[str, Any]) -> Case:
    """The case of a state; `dp` may be left out and is then what the other degrees leave of the devices.

    Raises InputError with every problem: unknown keys, wrong types, names that are not in the catalogue (a path is no
    name here), steps too long to simulate while a person waits.
    """
    _check_types(state)
    model, cluster, framework = _named(state)
    run_fields = {name: value for name, value in state.items() if name in _RUN}
    chosen = {name: value for name, value in state.items() if name in _STRATEGY}
    for name in ("layers_per_stage", "recompute_layers"):
        if isinstance(chosen.get(name), str):
            chosen[name] = _layers(name, chosen[name])
    if "order" in chosen:
        chosen["order"] = tuple(chosen["order"].split(JOINED["order"]))
    said: tuple[str, ...] = ()
    if "dp" not in chosen:
        taken = max(chosen.get("tp", 1) * chosen.get("pp", 1) * chosen.get("cp", 1), 1)
        chosen["dp"] = max(cluster.devices // taken, 1)
        said = (f"dp = {chosen['dp']}: what tp, cp and pp leave of {cluster.devices} devices.",)
    strategy, run = Strategy(**chosen), Run(**{"global_batch": 1, **run_fields})
    tasks = 2 * strategy.stages * (run.global_batch // max(strategy.dp * strategy.micro_batch, 1))
    if tasks > MAX_TASKS:
        raise InputError([Problem(
            f"pp({strategy.pp}) * vp({strategy.vp}) stages and {run.global_batch} sequences over dp({strategy.dp}) "
            f"make {tasks:,} tasks, more than this page simulates ({MAX_TASKS:,}).", "global_batch",
            "`shardwise estimate` has no such limit.",
        )])  # fmt: skip
    return Case(model=model, cluster=cluster, run=run, strategy=strategy, framework=framework, said=said)


def _layers(name: str, text: str) -> tuple[int, ...]:
    """Layers of each stage, from "26,14"."""
    parts = text.split(JOINED[name]) if text else []
    if not all(part.isascii() and part.isdigit() for part in parts):
        hint = "As 26,14; none for the even split." if name == "layers_per_stage" else "As 3, or 3,2 for two stages."
        raise InputError([Problem(f"{name} must be whole numbers with commas.", name, hint)])
    return tuple(map(int, parts))


def _check_types(state: Mapping[str, Any]) -> None:
    complaints = Complaints()
    for name, value in state.items():
        if name not in FIELDS:
            complaints.add(f"{name[:40]!r} is no setting.", where="state", hint=did_you_mean(name[:64], FIELDS))
        elif type(value) is not FIELDS[name] and not (name in JOINED and isinstance(value, str)):
            kinds = {int: "a whole number", str: "text", bool: "true or false"}
            complaints.add(f"{name} must be {kinds[FIELDS[name]]}.", where=name)
        elif isinstance(value, int) and abs(value) > MAX_EXACT:
            complaints.add(f"{name} is beyond 2^53.", where=name)
        elif isinstance(value, str) and len(value) > (most := MAX_TEXT.get(name, 64)):
            complaints.add(f"{name} is longer than {most} characters.", where=name)
    for name in ("model", "cluster"):
        complaints.require(name in state, f"{name} is missing.", where=name)
    complaints.raise_if_any()


def _named(state: Mapping[str, Any]) -> tuple[ModelSpec, Cluster, Framework]:
    """What the names mean; every unknown one is reported."""
    complaints = Complaints()
    found: dict[str, Any] = {}
    readers = {
        "model": catalog.load_model,
        "cluster": lambda name: catalog.load_cluster(name, nodes=state.get("nodes")),
        "framework": catalog.load_framework,
    }
    for kind, read in readers.items():
        name = state.get(kind, Run(global_batch=1).framework if kind == "framework" else "")
        if catalog.is_path(name):
            complaints.add(f"{name!r} is a path: this page takes names of the catalogue only.", where=kind,
                           hint="`shardwise --catalog DIR explore` adds a catalogue.")  # fmt: skip
            continue
        try:
            found[kind] = read(name)
        except InputError as error:
            for problem in error.problems:
                complaints.add(problem.message, where="nodes" if " nodes" in problem.message else kind,
                               hint=problem.hint)  # fmt: skip
    complaints.raise_if_any()
    return found["model"], found["cluster"], found["framework"]


def catalogue() -> dict[str, Any]:
    """What can be chosen: names of the catalogue and the words of every option."""
    return {
        "names": {kind: list(catalog.names(kind)) for kind in ("models", "clusters", "frameworks")},
        "words": {"schedule": SCHEDULES, "recompute": RECOMPUTE[:3], "precision": PRECISIONS, "optimizer": OPTIMIZERS,
                  "context_kind": CONTEXT_KINDS},
        "start": dict(START),
        "split": sorted(FIELDS.keys() & _STRATEGY),
    }  # fmt: skip


def dial_values(case: Case) -> dict[str, list[int]]:
    """The stops of each dial: values that the model and the cluster could take, each by itself."""
    model, cluster, devices = case.model, case.cluster, case.cluster.devices
    heads = [spec.heads for spec in attentions(model)] or [1]
    splits = [d for d in divisors(devices) if d <= 4096]
    experts = min([spec.count for spec in expert_specs(model)], default=1)
    per_rank = max(model.layers // case.strategy.pp, 1)
    powers = [2**i for i in range(23)]
    lengths = [p for p in powers if 128 <= p <= 2**20]
    nodes = [p for p in powers if p * cluster.devices_per_node <= 131_072]
    batches = [factor * p for p in powers for factor in (1, 3)]
    values = {
        "nodes": nodes,
        "global_batch": [n for n in batches if 1 <= n <= 16_384],
        "seq_len": [*lengths, model.seq_len],
        "tp": [d for d in splits if d <= 64 and all(count % d == 0 for count in heads)],
        "pp": [d for d in splits if d <= model.layers],
        "dp": splits,
        "cp": [d for d in splits if d <= 64],
        "ep": [d for d in divisors(experts) if d <= devices],
        "etp": [d for d in (1, 2, 4, 8) if experts > 1 or d == 1],
        "vp": [d for d in divisors(per_rank) if d <= 16],
        "micro_batch": [p for p in powers if p <= 64],
        "zero": [0, 1, 2, 3],
    }
    current = {"nodes": cluster.nodes, "global_batch": case.run.global_batch,
               "seq_len": case.run.seq_len or model.seq_len}  # fmt: skip
    for name, stops in values.items():
        now = current.get(name, getattr(case.strategy, name, None))
        values[name] = sorted({*stops, *([now] if isinstance(now, int) and now >= 0 else [])})
    return values
