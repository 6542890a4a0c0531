"""Recomputation that keeps not even the output (Megatron-Core `CheckpointWithoutOutput`).

A norm's or an activation's output is read by a linear layer that keeps it for its weight gradient. Here its memory is
freed after that reader ran, and filled again just before the reader's backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class Discarded:
    """One call of `run` on `inputs`: `run()` gives its output, `release(read)` frees it once `read` is made from it."""

    def __init__(self, run: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        self.function, self.inputs = run, inputs
        self.outputs: tuple[Tensor, ...] = ()
        self.kept: tuple[Tensor, ...] = ()
        self.again: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = ((), ())

    def run(self) -> Any:
        """The output, without its graph."""
        tensors = [value for value in self.inputs if isinstance(value, Tensor)]
        made = _Silent.apply(self, *tensors)
        self.outputs = made if isinstance(made, tuple) else (made,)
        return made

    def release(self, read: Tensor) -> Tensor:
        """Free the output; make it again when the gradient of `read` arrives."""
        sizes = [output.untyped_storage().nbytes() for output in self.outputs]
        for output in self.outputs:
            output.untyped_storage().resize_(0)
        read.register_hook(lambda _: self._refill(sizes))
        return read

    def _refill(self, sizes: list[int]) -> None:
        inputs = tuple(tensor.detach().requires_grad_() for tensor in self.kept)
        with torch.enable_grad():
            made = self.call(inputs)
        made = made if isinstance(made, tuple) else (made,)
        self.again = (inputs, made)
        with torch.no_grad():
            for output, fresh, size in zip(self.outputs, made, sizes, strict=True):
                output.untyped_storage().resize_(size)
                with torch.autograd._unsafe_preserve_version_counter(output):
                    output.copy_(fresh)

    def call(self, tensors: tuple[Tensor, ...]) -> Any:
        """`run` with `tensors` in the places of the tensor inputs."""
        left = iter(tensors)
        return self.function(*(next(left) if isinstance(value, Tensor) else value for value in self.inputs))


class _Silent(Function):
    """Run without a graph, keep the inputs; backward goes through the graph that `_refill` made."""

    @staticmethod
    def forward(ctx: Any, owner: Discarded, *tensors: Tensor) -> Any:
        ctx.owner = owner
        ctx.save_for_backward(*tensors)
        owner.kept = tensors
        with torch.no_grad():
            return owner.call(tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, outputs = ctx.owner.again
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        return None, *(tensor.grad for tensor in inputs)
