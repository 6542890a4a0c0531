"""Real gloo ranks on this machine's loopback issue the collectives that one fake rank does, in the same order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from simulator.validate.torch_counts.collectives import Recorder, fake_world  # noqa: E402

PROGRAM = """
import json, os, sys
import torch.distributed as dist
sys.path.insert(0, {root!r})
from tests.oracles.test_torch_gloo import step
rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", rank=rank, world_size=ranks, store=dist.FileStore(folder + "/store", ranks))
print(json.dumps(step(sys.argv[4], ranks)), flush=True)
dist.barrier()
os._exit(0)  # gloo's threads may outlive the interpreter and abort it; what is tested has been printed.
"""


def step(kind: str, ranks: int) -> list[list[Any]]:
    """One forward and backward of a small GPT; every collective as [phase, kind, ranks, bytes]."""
    import torch.distributed as dist

    from simulator.validate.torch_counts.tensor_parallel import Split, SplitGpt
    from tests.support import gpt

    torch.manual_seed(0)
    model = gpt(64, 2, 4, vocab=128, seq_len=16)
    if kind == "fsdp":
        return _fsdp_step(model, ranks)
    module = SplitGpt(model, Split(group=dist.group.WORLD, sequence=kind == "tp+sp"), layers=2)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    with Recorder() as recorder:
        loss = module(torch.zeros(16, 2, dtype=torch.int64))
        recorder.phase = "backward"
        loss.backward()
    return [list(event) for event in recorder.events]


def _fsdp_step(model: Any, ranks: int) -> list[list[Any]]:
    from dataclasses import replace

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from simulator.arch.parameters import COUNTING
    from simulator.parallel.recompute import Policy
    from simulator.validate.torch_counts.blocks import Setting
    from simulator.validate.torch_counts.tally import build

    kernels = replace(COUNTING, activation_dtype="fp32", gemm_dtype="fp32")
    module = build(Setting(model=model, kernels=kernels, policy=Policy()))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in module.stacks[0].layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    with Recorder() as recorder:
        loss = module(torch.zeros(2, 16, dtype=torch.int64))
        recorder.phase = "backward"
        loss.backward()
    return [list(event) for event in recorder.events]


@pytest.mark.loopback
@pytest.mark.parametrize(("kind", "ranks"), [("tp", 2), ("tp+sp", 2), ("fsdp", 2), ("tp+sp", 4), ("fsdp", 4)])
def test_real_ranks_issue_the_same_sequence(kind: str, ranks: int, tmp_path: Path, root: Path) -> None:
    with fake_world(ranks):
        expected = step(kind, ranks)
    program = PROGRAM.format(root=str(root))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(ranks), str(tmp_path), kind],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
            env={"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(ranks)
    ]  # fmt: skip
    ended = [(*process.communicate(timeout=300), process.returncode) for process in started]
    for out, err, code in ended:
        assert code == 0, err
        assert json.loads(out.splitlines()[-1]) == expected
    assert len(expected) > 4
