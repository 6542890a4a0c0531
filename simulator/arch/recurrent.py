"""LSTM layers, for the 2017 sparsely-gated mixtures (Shazeer 2017 App. C)."""

from __future__ import annotations

from simulator.arch.operations import Gemm, Operation, Pointwise, Saved, Weight
from simulator.arch.shard import Kernels, Shard
from simulator.spec.model import LstmSpec


def lstm(spec: LstmSpec, *, width: int, shard: Shard, kernels: Kernels, name: str = "lstm") -> list[Operation]:
    """Four gates over [input, state]. The input half is one GEMM over all tokens; the state half is one small GEMM
    per time step, one after the other. Weights 4 (width + state) hidden, plus the projection's hidden x state.
    """
    state = spec.projection or spec.hidden
    gates, tokens, size = 4 * spec.hidden, shard.tokens, kernels.element_bytes
    inputs = Gemm(m=tokens, n=gates, k=width, dtype=kernels.gemm_dtype)
    step = Gemm(m=shard.micro_batch, n=gates, k=state, repeat=shard.seq_len, dtype=kernels.gemm_dtype)
    # The state before the first step is a constant (truncated back-propagation), so its gradient is not made.
    step_back = Gemm(m=shard.micro_batch, n=state, k=gates, repeat=shard.seq_len - 1, dtype=kernels.gemm_dtype)
    cell = Pointwise(bytes=tokens * spec.hidden * 8 * size, flops=tokens * spec.hidden * 20)
    operations = [
        Operation(
            name=name,
            forward=(inputs, step, cell),
            input_grad=(cell, step_back, Gemm(m=tokens, n=width, k=gates, dtype=kernels.gemm_dtype)),
            weight_grad=(Gemm(m=gates, n=width + state, k=tokens, dtype=kernels.gemm_dtype),),
            weights=(Weight(name=name, elements=(width + state) * gates),),
            saves=(
                Saved(name=f"{name}.gates", bytes=tokens * gates * size),
                Saved(name=f"{name}.cells", bytes=tokens * spec.hidden * size, boundary=True),
                Saved(name=f"{name}.states", bytes=tokens * state * size, boundary=True),
            ),
        )
    ]
    if spec.projection:
        project = Gemm(m=shard.micro_batch, n=state, k=spec.hidden, repeat=shard.seq_len, dtype=kernels.gemm_dtype)
        back = Gemm(m=shard.micro_batch, n=spec.hidden, k=state, repeat=shard.seq_len, dtype=kernels.gemm_dtype)
        operations.append(
            Operation(
                name=f"{name}.projection",
                forward=(project,),
                input_grad=(back,),
                weight_grad=(Gemm(m=state, n=spec.hidden, k=tokens, dtype=kernels.gemm_dtype),),
                weights=(Weight(name=f"{name}.projection", elements=spec.hidden * state),),
            )
        )
    return operations
