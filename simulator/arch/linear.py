"""Linear layers with their tensor-parallel borders, and the pointwise kernels around them.

Column-parallel layers split their outputs over tp, row-parallel ones their inputs (Shoeybi 2019 sec. 3). Under
sequence parallelism the border all-reduces become an all-gather and a reduce-scatter (Korthikanti 2022 sec. 4.2.2).
"""

from __future__ import annotations

from simulator.arch.operations import DTYPE_BYTES, Collective, Gemm, Number, Operation, Pointwise, Saved, Weight, Work
from simulator.arch.shard import LOW_PRECISIONS, Kernels, Shard, is_split


def gemm_forward(tokens: Number, outputs: Number, inputs: Number, kernels: Kernels) -> tuple[Work, ...]:
    """Y[tokens, outputs] = X W, with the casts a low precision needs."""
    work = Gemm(m=tokens, n=outputs, k=inputs, dtype=kernels.gemm_dtype)
    return (*cast(tokens * inputs, kernels), work)


def gemm_backward(
    tokens: Number, outputs: Number, inputs: Number, kernels: Kernels
) -> tuple[tuple[Work, ...], tuple[Work, ...]]:
    """dX[tokens, inputs] = dY W^T (B) and dW[outputs, inputs] = dY^T X (W)."""
    input_grad = (*cast(tokens * outputs, kernels), Gemm(m=tokens, n=inputs, k=outputs, dtype=kernels.gemm_dtype))
    weight_grad = (Gemm(m=outputs, n=inputs, k=tokens, dtype=kernels.gemm_dtype),)
    return input_grad, weight_grad


def cast(elements: Number, kernels: Kernels) -> tuple[Work, ...]:
    """Quantise a tensor and its transpose: read it, write two narrow copies (TransformerEngine cast_transpose)."""
    if kernels.gemm_dtype not in LOW_PRECISIONS:
        return ()
    return (Pointwise(bytes=elements * (kernels.element_bytes + 2 * kernels.gemm_input_bytes)),)


def kept_in(dtype: str, elements: Number, kernels: Kernels) -> tuple[tuple[Work, ...], tuple[Work, ...]]:
    """Copies into the dtype in which a tensor is kept for backward, and out of it again: read one, write the other."""
    if not dtype:
        return (), ()
    copy = Pointwise(bytes=elements * (kernels.element_bytes + DTYPE_BYTES[dtype]), kernel="cast")
    return (copy,), (copy,)


def linear(
    name: str,
    *,
    tokens: Number,
    inputs: Number,
    outputs: Number,
    kernels: Kernels,
    bias_elements: Number = 0,
    saves: tuple[Saved, ...] = (),
    modules: tuple[str, ...] = (),
    sequence_replicated: bool = False,
) -> Operation:
    """A linear layer without borders: local `inputs` x `outputs`; a bias of `bias_elements` rides in the epilogue."""
    input_grad, weight_grad = gemm_backward(tokens, outputs, inputs, kernels)
    return Operation(
        name=name,
        forward=gemm_forward(tokens, outputs, inputs, kernels),
        input_grad=input_grad,
        weight_grad=weight_grad + _bias_grad(tokens, bias_elements, kernels),
        weights=weights(name, inputs * outputs, bias_elements, sequence_replicated=sequence_replicated),
        saves=saves,
        modules=modules,
    )


def weights(
    name: str, elements: Number, bias_elements: Number, *, sequence_replicated: bool = False
) -> tuple[Weight, ...]:
    """The matrix and, where there is one, the bias."""
    matrix = Weight(name=f"{name}.weight", elements=elements, sequence_replicated=sequence_replicated)
    if isinstance(bias_elements, (int, float)) and bias_elements == 0:
        return (matrix,)
    return matrix, Weight(name=f"{name}.bias", elements=bias_elements, sequence_replicated=sequence_replicated)


def _bias_grad(tokens: Number, bias_elements: Number, kernels: Kernels) -> tuple[Work, ...]:
    """A bias gradient sums dY over tokens: one read."""
    if isinstance(bias_elements, (int, float)) and bias_elements == 0:
        return ()
    return (Pointwise(bytes=tokens * bias_elements * kernels.element_bytes, kernel="row_sum"),)


def enter_tensor_parallel(name: str, *, tokens: Number, width: Number, shard: Shard, kernels: Kernels) -> Operation:
    """The border before a column-parallel layer.

    With sequence parallelism: all-gather forward; in backward the saved input shard is gathered again (beside the
    input-gradient GEMM) and the input gradient reduce-scattered (beside the weight-gradient GEMM). Without: the
    input gradient is all-reduced beside the weight-gradient GEMM.
    """
    if not is_split(shard.tp):
        return Operation(name=name)
    full_bytes = tokens * width * kernels.element_bytes
    beside_weight = "weight_grad" if kernels.overlap_tp_grad else ""
    if not shard.sequence_parallel:
        return Operation(
            name=name, input_grad=(Collective(kind="all_reduce", axis="tp", bytes=full_bytes, hides=beside_weight),)
        )
    forward = Collective(
        kind="all_gather", axis="tp", bytes=full_bytes, hides="forward_gemm" if kernels.overlap_tp else ""
    )
    again = Collective(
        kind="all_gather", axis="tp", bytes=full_bytes, hides="input_grad" if kernels.overlap_tp_grad else ""
    )
    scatter = Collective(kind="reduce_scatter", axis="tp", bytes=full_bytes, hides=beside_weight)
    return Operation(name=name, forward=(forward,), input_grad=(again, scatter))


def leave_tensor_parallel(name: str, *, tokens: Number, width: Number, shard: Shard, kernels: Kernels) -> Operation:
    """The border after a row-parallel layer: all-reduce, or reduce-scatter forward and all-gather backward."""
    if not is_split(shard.tp):
        return Operation(name=name)
    full_bytes = tokens * width * kernels.element_bytes
    hides = "forward_gemm" if kernels.overlap_tp else ""
    if not shard.sequence_parallel:
        return Operation(name=name, forward=(Collective(kind="all_reduce", axis="tp", bytes=full_bytes, hides=hides),))
    return Operation(
        name=name,
        forward=(Collective(kind="reduce_scatter", axis="tp", bytes=full_bytes, hides=hides),),
        input_grad=(
            Collective(
                kind="all_gather", axis="tp", bytes=full_bytes, hides="input_grad" if kernels.overlap_tp else ""
            ),
        ),
    )


def pointwise(
    name: str,
    *,
    elements: Number,
    forward: float,
    backward: float,
    kernels: int = 1,
    kernel: str = "",
    saves: tuple[Saved, ...] = (),
    modules: tuple[str, ...] = (),
) -> Operation:
    """Elementwise kernels of `forward` and `backward` bytes per element [B]; `kernel` names them."""
    grad = f"{kernel}_grad" if kernel else ""
    return Operation(
        name=name,
        forward=(Pointwise(bytes=elements * forward, kernels=kernels, kernel=kernel),) if forward else (),
        input_grad=(Pointwise(bytes=elements * backward, kernels=kernels, kernel=grad),) if backward else (),
        saves=saves,
        modules=modules,
    )


def norm(
    name: str, *, tokens: Number, width: Number, kernels: Kernels, layernorm: bool, bias: bool,
    input_saved: bool = True, output_saved: bool = True, modules: tuple[str, ...] = ("layernorm",),
) -> Operation:  # fmt: skip
    """LayerNorm or RMSNorm: reads x, writes y; backward reads dy and x, writes dx and adds the residual's gradient.

    Saves its input (the residual stream), fp32 statistics (mean and 1/sigma, or 1/rms) and, where the next layer is
    linear, its output; unfused an fp32 (centred) copy of its input, 1/sigma and the normalised input. Unfused (an RMS
    norm written in tensor operations: cast to fp32, square, mean, scale, cast back, weight), forward runs six kernels
    of 28 B + 4 elements and backward ten of 56 B + 6 elements. A compiler whose kernels end at each reduction reads x
    for the mean, the variance and the result, and backward dy and x for their sums and again for dx.
    """
    size, fused = kernels.element_bytes, kernels.fused_norm or kernels.compiled
    forward_bytes, backward_bytes = (2 * size, 3 * size) if fused else (28.0 + 4 * size, 56.0 + 6 * size)
    forward_kernels, backward_kernels = (1, 1) if fused else (6, 10)
    if kernels.compiled and not (kernels.fused_norm or kernels.fuses_reductions):
        means = 2 if layernorm else 1
        forward_bytes, backward_bytes = (2 + means) * size, 5 * size
        forward_kernels, backward_kernels = 1 + means, 2
    elements = tokens * width
    kernel = ("layernorm" if layernorm else "rmsnorm") if fused else "unfused_norm"
    parameters = width * (2 if layernorm and bias else 1)
    saves = []
    if input_saved or not (fused or size == 4.0):
        saves.append(Saved(name=f"{name}.input", bytes=elements * (size if fused else 4.0), boundary=True))
    saves += [Saved(name=f"{name}.{part}", bytes=tokens * 4.0, statistic=True)
              for part in (("mean", "scale") if layernorm and fused else ("scale",))]  # fmt: skip
    if not fused:
        saves.append(Saved(name=f"{name}.normalised", bytes=elements * size))
    if output_saved:
        saves.append(Saved(name=f"{name}.output", bytes=elements * kernels.gemm_input_bytes))
    return Operation(
        name=name,
        forward=(Pointwise(bytes=elements * forward_bytes, flops=elements * 7, kernels=forward_kernels,
                           kernel=kernel),),
        input_grad=(Pointwise(bytes=elements * backward_bytes, flops=elements * 11, kernels=backward_kernels,
                              kernel=f"{kernel}_grad"),
                    Pointwise(bytes=elements * 3 * size, kernel="add")),
        weight_grad=(Pointwise(bytes=elements * 2 * size, kernel=f"{kernel}_weight_grad"),),
        weights=(Weight(name=name, elements=parameters, sequence_replicated=True),),
        saves=tuple(saves),
        modules=modules,
    )  # fmt: skip


def bias_dropout_add(name: str, *, tokens: Number, width: Number, kernels: Kernels, bias: bool) -> Operation:
    """Bias, dropout and residual add after a block: one kernel when fused, else one each.

    Dropout keeps a mask of 1 B per element. Without dropout or bias it is a plain add.
    """
    size = kernels.element_bytes
    elements = tokens * width
    parts = 1 + int(kernels.dropout) + int(bias)
    fused = kernels.fused_bias_dropout or kernels.compiled
    mask = 1.0 if kernels.dropout else 0.0
    forward = (3 * size + mask) if fused else 3 * size + (parts - 1) * 2 * size + mask
    saves = (Saved(name=f"{name}.dropout_mask", bytes=elements * 1.0),) if kernels.dropout else ()
    return pointwise(
        name,
        elements=elements,
        forward=forward,
        backward=2 * size + mask if kernels.dropout else 0.0,
        kernels=1 if fused else parts,
        kernel="dropout_add" if kernels.dropout else "add",
        saves=saves,
    )
