"""One rank of test_split.py: loss and gradients of a split model beside those of the whole one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from simulator.measure.parallel import Groups, build_parts, groups_for, replicated
from simulator.measure.suite import Case, case
from simulator.measure.train import reduce_in_buckets

LONE = Groups(by_axis=dict.fromkeys(("tp", "cp", "dp", "pp", "ep", "edp", "dp_cp")), place={"pp": 0})


def _slice(name: str, full: Tensor, rank: int, ranks: int, parts: tuple[int, ...]) -> Tensor:
    """This rank's slice of a whole parameter, by hand: rows of what enters a block, columns of what leaves it."""
    words = name.split(".")
    if name in ("embedding.tokens", "head.weight"):
        return full.chunk(ranks, 0)[rank]
    if len(words) > 2 and words[-2] in ("qkv", "up"):
        return torch.cat([part.chunk(ranks, 0)[rank] for part in full.split(parts, 0)])
    if len(words) > 2 and words[-2] in ("out", "down") and words[-1] == "weight":
        return full.chunk(ranks, 1)[rank]
    return full


def _parts(name: str, whole: nn.Module, full: Tensor, gated: bool) -> tuple[int, ...]:
    if ".qkv." in name:
        return tuple(whole.get_submodule(name.rpartition(".")[0]).parts)
    return (full.shape[0] // 2,) * 2 if gated else (full.shape[0],)


def compare(entry: Case, rank: int) -> dict[str, float]:
    """Relative errors of the loss and of the worst gradient, over the largest gradient of its parameter."""
    ranks = entry.strategy.tp
    alone = case(entry.model, entry.run.global_batch, entry.run.seq_len)
    whole = build_parts(alone, LONE)[0]
    groups = groups_for(entry.strategy, rank)
    split = build_parts(entry, groups)[0]
    torch.manual_seed(5)
    for value in whole.parameters():
        nn.init.normal_(value, 0.1, 0.05)
    gated = entry.model.startswith("llama")
    held = dict(whole.named_parameters())

    def mine(name: str, tensor: Tensor) -> Tensor:
        return _slice(name, tensor, rank, ranks, _parts(name, whole, tensor, gated))

    with torch.no_grad():
        for name, value in split.named_parameters():
            value.copy_(mine(name, held[name]))
    ids = torch.randint(0, 2048, (entry.run.global_batch, entry.run.seq_len))
    expected, found = whole(ids, ids), split(ids, ids)
    expected.backward()
    found.backward()
    if entry.strategy.sequence_parallel:
        reduce_in_buckets(replicated({0: split}), groups.by_axis["tp"], mean=False)
    errors: dict[str, float] = {}
    for name, value in split.named_parameters():
        wanted: Any = held[name].grad
        errors[name] = float((value.grad - mine(name, wanted)).abs().max() / wanted.abs().max())
    worst = max(errors, key=lambda name: errors[name])
    return {"loss": float((found - expected).abs() / expected), "gradient": errors[worst], "worst": worst}  # type: ignore[dict-item]


def main() -> None:
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    answer = {}
    for model in ("gpt-1m", "llama-15m", "bert-17m"):
        for sequence in (False, True):
            entry = case(model, 4, 16, tp=ranks, sequence_parallel=sequence)
            answer[entry.name] = compare(entry, rank)
    (folder / f"{rank}.json").write_text(json.dumps(answer), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
