"""Feed-forward blocks: two matrices, or three when gated (GLU variants, Shazeer 2020)."""

from __future__ import annotations

from dataclasses import replace

from simulator.arch.linear import enter_tensor_parallel, kept_in, leave_tensor_parallel, linear, pointwise
from simulator.arch.operations import Number, Operation, Saved
from simulator.arch.shard import Kernels, Shard
from simulator.spec.model import ExpertsSpec, FeedForwardSpec


def activation(
    name: str, *, rows: Number, hidden: Number, spec: FeedForwardSpec | ExpertsSpec, kernels: Kernels,
    modules: tuple[str, ...],
) -> Operation:  # fmt: skip
    """The activation between the matrices: reads 1 (gated: 2) values per hidden unit, writes 1.

    Saves its output, the second matrix's input; its own input is saved by the layer that made it. A plain ReLU needs
    its output only, so the two are one tensor, listed as the input (recomputing it frees nothing). Unfused, the
    gate's product is a kernel of its own (2 + 3 elements forward, 3 + 3 + 3 backward) that keeps the activated gate.
    """
    size = kernels.element_bytes
    gated = spec.gated
    reads = 2 if gated else 1
    fused = kernels.fused_bias_activation or kernels.compiled
    extra = int(gated and not fused)
    saves: list[Saved] = []
    if spec.activation != "relu" or gated:
        saves.append(Saved(name=f"{name}.output", bytes=rows * hidden * kernels.gemm_input_bytes))
    if gated and not fused:
        saves.append(Saved(name=f"{name}.gate", bytes=rows * hidden * size))
    found = pointwise(
        name,
        elements=rows * hidden,
        forward=size * (reads + 1 + 2 * extra),
        backward=size * (2 * reads + 1 + 4 * extra),
        kernels=1 + extra,
        kernel=f"gated_{spec.activation}" if gated else spec.activation,
        saves=tuple(saves),
        modules=modules,
    )
    keep, take = kept_in(kernels.activation_input_dtype, rows * hidden * reads, kernels)
    return replace(found, forward=(*found.forward, *keep), input_grad=(*take, *found.input_grad))


def feed_forward(
    spec: FeedForwardSpec, *, width: int, shard: Shard, kernels: Kernels, name: str = "mlp",
    modules: tuple[str, ...] = ("mlp",),
) -> list[Operation]:  # fmt: skip
    """Column-parallel up (and gate), activation, row-parallel down. Local hidden size is hidden / tp."""
    tokens, hidden = shard.tokens, spec.hidden / shard.tp
    columns = hidden * (2 if spec.gated else 1)
    kept = kernels.kept_bytes(kernels.activation_input_dtype)
    return [
        enter_tensor_parallel(f"{name}.enter", tokens=tokens, width=width, shard=shard, kernels=kernels),
        linear(
            f"{name}.up", tokens=tokens, inputs=width, outputs=columns, kernels=kernels,
            bias_elements=columns if spec.bias else 0, modules=modules,
            saves=(Saved(name=f"{name}.up.output", bytes=tokens * columns * kept),),
        ),
        activation(
            f"{name}.activation", rows=tokens, hidden=hidden, spec=spec, kernels=kernels,
            modules=modules,
        ),
        linear(
            f"{name}.down", tokens=tokens, inputs=hidden, outputs=width, kernels=kernels,
            bias_elements=width if spec.bias else 0, modules=modules,
        ),
        leave_tensor_parallel(f"{name}.leave", tokens=tokens, width=width, shard=shard, kernels=kernels),
    ]  # fmt: skip
