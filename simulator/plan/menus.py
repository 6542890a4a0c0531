"""What the training frameworks offer: the schedules, ZeRO stages and placements that are searched by default.

A plan must be something one can run. Sources, by family (the flags at the versions that `io/` writes):

- Megatron-LM, Megatron-Bridge, NeMo: megatron/core/pipeline_parallel/schedules.py (1F1B and interleaved);
  --use-distributed-optimizer (ZeRO-1) and --data-parallel-sharding-strategy optim_grads_params (Megatron-FSDP,
  searched without a pipeline); --use-tp-pp-dp-mapping; --recompute-granularity full with --recompute-method block and
  --recompute-num-layers (one number for all; NeMo's activations_checkpoint_layers_per_pipeline takes so many fewer on
  each later rank, and a rank's configuration may hold its own); --pipeline-model-parallel-layout. Releases of 2021
  shard nothing and split layers evenly; those of 2022 have the distributed optimizer (framework profiles).
- DeepSpeed, and Megatron-DeepSpeed on its engine: runtime/pipe/schedule.py TrainSchedule (1F1B); runtime/pipe/engine.py
  refuses ZeRO-2 and 3 with a pipeline; layers are split by the model's code.
- torchtitan and torch: torch/distributed/pipelining/schedules.py; shard and replicate degrees with
  fsdp_reshard_after_forward (ZeRO-2 is parameters kept after forward); the mesh has pp outermost;
  activation_checkpoint takes whole layers or every n-th; module_fqns_per_model_part sets the layers of a stage.
- sail-sg/zero-bubble: the orders of its papers, on Megatron-LM of 2023.
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
    """Full recomputation of some layers of each stage: as many of all, or of each its own."""
    uneven_splits: bool = True
    """Stages with numbers of layers of one's own."""


_MEGATRON = Menu(schedules=("1f1b", "interleaved"), zero=(0, 1), zero_flat=(0, 1, 3))
_MEGATRON_2022 = Menu(schedules=("1f1b", "interleaved"), zero=(0, 1), zero_flat=(0, 1), orders=(AXES,),
                      uneven_splits=False)  # fmt: skip
_MEGATRON_2021 = Menu(schedules=("1f1b", "interleaved"), zero=(0,), zero_flat=(0,), orders=(AXES,),
                      uneven_splits=False)  # fmt: skip
_DEEPSPEED = Menu(schedules=("1f1b",), zero=(0, 1), orders=(AXES,), partial_recompute=False, uneven_splits=False)
_TORCH = Menu(schedules=("gpipe", "1f1b", "interleaved", "interleaved-bfs", "zb-h1", "zbv", "dualpipev"),
              zero=(0, 2, 3), zero_flat=(0, 2, 3), orders=(AXES,), partial_recompute=False)  # fmt: skip
_ZERO_BUBBLE = Menu(schedules=("1f1b", "interleaved", "zb-h1", "zb-h2", "zbv", "v-half", "v-min"), zero=(0, 1),
                    zero_flat=(0, 1), orders=(AXES,), uneven_splits=False)  # fmt: skip
_FAMILIES = (
    ("zero-bubble", _ZERO_BUBBLE), ("hf-deepspeed", _DEEPSPEED), ("deepspeed", _DEEPSPEED),
    ("megatron-deepspeed", _DEEPSPEED), ("megatron-lm-2021", _MEGATRON_2021), ("megatron-lm-2022", _MEGATRON_2022),
    ("nemo-megatron-2022", _MEGATRON_2022), ("megatron", _MEGATRON), ("nemo-automodel", _TORCH), ("nemo", _MEGATRON),
    ("aa-scaling", _MEGATRON_2022), ("simumax", _MEGATRON), ("torchtitan", _TORCH), ("torch-fsdp", _TORCH),
)  # fmt: skip


def menu_of(framework: Framework) -> Menu:
    """The menu of a framework's family; everything for software that is in none."""
    return next((menu for start, menu in _FAMILIES if framework.name.startswith(start)), Menu())
