"""Host time per operator of eager PyTorch: what `launch_s` of the framework profiles is based on.

A transformer layer so small that its kernels cost nothing, forward and backward on one CPU thread, with and without
reentrant activation checkpointing. The time over the number of kernel-level operators is what the host spends on each:
Python modules, dispatch, autograd. A GPU adds its launch (3.8 us, NVIDIA developer blog, Gray 2019).

Run: python tools/measure_host_dispatch.py
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

LAYERS, HIDDEN, HEADS, REPEATS = 8, 16, 2, 60
KERNELS = {
    "addmm", "mm", "bmm", "native_layer_norm", "native_layer_norm_backward", "mul", "add", "add_", "_softmax",
    "_softmax_backward_data", "bernoulli_", "div", "div_", "gelu", "gelu_backward", "sum", "copy_", "fill_", "zero_",
}  # fmt: skip
"""Operators of ATen that launch one kernel each on a GPU."""


class Layer(nn.Module):
    """A GPT layer with unfused attention and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)])
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        shape = (batch, tokens, 3, HEADS, HIDDEN // HEADS)
        q, k, v = self.qkv(self.norms[0](x)).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.dropout(torch.softmax(torch.matmul(q, k.transpose(-1, -2)) * 0.5, -1), 0.1)
        core = torch.matmul(scores, v).transpose(1, 2).reshape(x.shape)
        x = x + F.dropout(self.out(core), 0.1)
        return x + F.dropout(self.down(F.gelu(self.up(self.norms[1](x)))), 0.1)


def step(layers: nn.ModuleList, *, checkpointed: bool) -> None:
    """One forward and backward pass."""
    x = torch.randn(1, 4, HIDDEN, requires_grad=True)
    for layer in layers:
        x = checkpoint(layer, x, use_reentrant=True) if checkpointed else layer(x)
    x.sum().backward()


def seconds_per_kernel(*, checkpointed: bool) -> tuple[float, float]:
    """Median CPU seconds per operator, and operators per layer."""
    layers = nn.ModuleList([Layer() for _ in range(LAYERS)])
    for _ in range(20):
        step(layers, checkpointed=checkpointed)
    times = []
    for _ in range(REPEATS):
        begin = time.process_time()
        step(layers, checkpointed=checkpointed)
        times.append(time.process_time() - begin)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(layers, checkpointed=checkpointed)
    count = sum(e.count for e in profile.key_averages() if e.key.removeprefix("aten::") in KERNELS)
    return sorted(times)[REPEATS // 2] / count, count / LAYERS


if __name__ == "__main__":
    torch.set_num_threads(1)
    for checkpointed in (False, True):
        each_s, count = seconds_per_kernel(checkpointed=checkpointed)
        print(f"checkpointed={checkpointed}: {each_s * 1e6:.1f} us per operator, {count:.0f} operators per layer")
