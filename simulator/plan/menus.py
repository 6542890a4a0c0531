"""What the training frameworks offer: the schedules, ZeRO stages and placements that are searched by default.

A plan must be something one can run. Sources, by family: Megatron-LM megatron/training/arguments.py (1F1B and
interleaved; distributed optimizer; --use-tp-pp-dp-mapping) and Megatron-FSDP, which shards parameters without a
pipeline; DeepSpeed runtime/pipe/engine.py ("ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism");
torchtitan's ParallelDims and torch.distributed.pipelining.schedules; sail-sg/zero-bubble for the zero-bubble orders.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.spec.run import Framework
from simulator.spec.strategy import AXES, SCHEDULES

PP_INSIDE_DP = ("tp", "cp", "ep", "pp", "dp")
"""Pipeline neighbours closer than replicas: Megatron-LM's --use-tp-pp-dp-mapping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """`zero` stages with any pipeline, `zero_flat` without one."""

    schedules: tuple[str, ...] = SCHEDULES
    zero: tuple[int, ...] = (0, 1, 2, 3)
    zero_flat: tuple[int, ...] = (0, 1, 2, 3)
    orders: tuple[tuple[str, ...], ...] = (AXES, PP_INSIDE_DP)
    partial_recompute: bool = True
    """Full recomputation of some layers of each stage."""
    uneven_splits: bool = True
    """Stages with numbers of layers of one's own."""


_MEGATRON = Menu(schedules=("1f1b", "interleaved"), zero=(0, 1), zero_flat=(0, 1, 3))
_DEEPSPEED = Menu(schedules=("1f1b",), zero=(0, 1), orders=(AXES,))
_TORCH = Menu(schedules=("gpipe", "1f1b", "interleaved", "interleaved-bfs", "zb-h1", "zbv", "dualpipev"),
              zero=(0, 2, 3), zero_flat=(0, 2, 3))  # fmt: skip
_ZERO_BUBBLE = Menu(schedules=("1f1b", "interleaved", "zb-h1", "zb-h2", "zbv", "v-half", "v-min"), zero=(0, 1),
                    zero_flat=(0, 1))  # fmt: skip
_FAMILIES = (
    ("zero-bubble", _ZERO_BUBBLE), ("hf-deepspeed", _DEEPSPEED), ("deepspeed", _DEEPSPEED),
    ("megatron", _MEGATRON), ("nemo-automodel", _TORCH), ("nemo", _MEGATRON), ("aa-scaling", _MEGATRON),
    ("simumax", _MEGATRON), ("torchtitan", _TORCH), ("torch-fsdp", _TORCH),
)  # fmt: skip


def menu_of(framework: Framework) -> Menu:
    """The menu of a framework's family; everything for software that is in none."""
    return next((menu for start, menu in _FAMILIES if framework.name.startswith(start)), Menu())
