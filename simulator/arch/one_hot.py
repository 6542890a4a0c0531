"""Dispatch and combine as products with one-hot tensors: how GShard, Mesh TensorFlow, Alpa and DeepSpeed route.

Tokens are routed in groups of S. A group's dispatch mask has one entry per token, expert and place in that expert's
buffer, [S, E, C] with E C = capacity * S, and moves the tokens by an einsum; the combine weights of the same shape
bring them back (Lepikhin 2020, arXiv 2006.16668, algorithms 1 and 2; Fedus 2022, figure 16). Their FLOPs per token
grow with the group: 2 h capacity S each, as much as a feed-forward of hidden size capacity S / 2.
"""

from __future__ import annotations

import numpy as np

from simulator.arch.operations import Gemm, Number, Operation, Pointwise, Saved
from simulator.arch.shard import Kernels


def group_tokens(tokens: Number, group: int) -> Number:
    """Tokens that are routed together: the stated size, at most all of the rank's, which is also the default.

    GShard and DeepSpeed take what a device holds as one group.

    >>> [float(group_tokens(4096, group)) for group in (1024, 8192, 0)]
    [1024.0, 4096.0, 4096.0]
    """
    return np.minimum(group or np.inf, tokens)


def one_hot_moves(
    name: str, *, tokens: Number, rows: Number, group: int, width: int, kernels: Kernels, kept: tuple[Saved, ...]
) -> tuple[Operation, Operation]:
    """The einsums before and after the experts: `rows` buffer places for the `tokens` of a rank.

    The mask is not differentiated (a cast from booleans), the combine weights are: their gradient is a product of its
    own, as large as they. `kept` are the experts' outputs that it needs.
    """
    size = kernels.element_bytes
    together = group_tokens(tokens, group)
    groups, places = tokens / together, rows / tokens * together
    entries = tokens * places
    to_places = Gemm(m=places, n=width, k=together, batch=groups, dtype=kernels.activation_dtype)
    to_tokens = Gemm(m=together, n=width, k=places, batch=groups, dtype=kernels.activation_dtype)
    weights = Gemm(m=together, n=places, k=width, batch=groups, dtype=kernels.activation_dtype)
    # Both tensors come out of one fused loop over the chosen places; the weights' gradient is summed over places.
    build = Pointwise(bytes=entries * 2 * size, kernel="one_hot")
    sum_gradient = Pointwise(bytes=entries * size, kernel="one_hot_grad")
    dispatch = Operation(
        name=f"{name}.permute", forward=(build, to_places), input_grad=(to_tokens,),
        saves=(Saved(name=f"{name}.permute.mask", bytes=entries * size),
               Saved(name=f"{name}.permute.weights", bytes=entries * size)),
        modules=("moe",),
    )  # fmt: skip
    combine = Operation(
        name=f"{name}.unpermute", forward=(to_tokens,), input_grad=(weights, sum_gradient, to_places),
        saves=kept, modules=("moe",),
    )  # fmt: skip
    return dispatch, combine

