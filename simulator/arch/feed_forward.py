"""Feed-forward blocks: two matrices, or three when gated (GLU variants, Shazeer 2020)."""

from __future__ import annotations

from simulator.arch.linear import enter_tensor_parallel, leave_tensor_parallel, linear, pointwise
from simulator.arch.operations import Number, Operation, Saved
from simulator.arch.shard import Kernels, Shard
from simulator.spec.model import FeedForwardSpec


def activation(
    name: str, *, rows: Number, hidden: Number, gated: bool, bias: bool, kernels: Kernels, modules: tuple[str, ...]
) -> Operation:
    """The activation between the matrices: reads 1 (gated: 2) values per hidden unit, writes 1.

    Saves its output, the second matrix's input; its own input is saved by the layer that made it. Unfused, the
    bias add and the gate product are kernels of their own.
    """
    size = kernels.element_bytes
    reads = 2 if gated else 1
    fused = kernels.fused_bias_activation or kernels.compiled
    extra = 0 if fused else int(bias) + int(gated)
    return pointwise(
        name,
        elements=rows * hidden,
        forward=size * (reads + 1 + 2 * extra),
        backward=size * (2 * reads + 1 + 2 * extra),
        kernels=1 + extra,
        saves=(Saved(name=f"{name}.output", bytes=rows * hidden * kernels.gemm_input_bytes),),
        modules=modules,
    )


def feed_forward(
    spec: FeedForwardSpec, *, width: int, shard: Shard, kernels: Kernels, name: str = "mlp", module: str = "mlp"
) -> list[Operation]:
    """Column-parallel up (and gate), activation, row-parallel down. Local hidden size is hidden / tp."""
    tokens, hidden = shard.tokens, spec.hidden / shard.tp
    columns = hidden * (2 if spec.gated else 1)
    up_output = Saved(name=f"{name}.up.output", bytes=tokens * columns * kernels.element_bytes)
    return [
        enter_tensor_parallel(f"{name}.enter", tokens=tokens, width=width, shard=shard, kernels=kernels),
        linear(
            f"{name}.up", tokens=tokens, inputs=width, outputs=columns, kernels=kernels,
            bias_elements=columns if spec.bias else 0, saves=(up_output,), modules=(module,),
        ),
        activation(
            f"{name}.activation", rows=tokens, hidden=hidden, gated=spec.gated, bias=spec.bias, kernels=kernels,
            modules=(module,),
        ),
        linear(
            f"{name}.down", tokens=tokens, inputs=hidden, outputs=width, kernels=kernels,
            bias_elements=width if spec.bias else 0, modules=(module,),
        ),
        leave_tensor_parallel(f"{name}.leave", tokens=tokens, width=width, shard=shard, kernels=kernels),
    ]  # fmt: skip
