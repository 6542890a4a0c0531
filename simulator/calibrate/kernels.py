"""What is measured of single kernels: which operators, at which sizes, and what each is charged to.

Sizes are drawn at random, as multiples of 16 that no model of the measured suite uses, and through autograd, as a
training step runs them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from simulator.cluster.measured import attention_terms, product_terms
from simulator.validate.torch_counts.functions import activate, rotate
from simulator.validate.torch_counts.tally import DTYPES

LARGEST_FLOPS = 3e9


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One operator at one size. `make` gives inputs, `run` the output; forward and backward are timed apart.

    `forward` and `backward` are (family, terms) of a sum, or (curve, bytes) of a curve; None is not charged.
    """

    make: Callable[[], list[Tensor]]
    run: Callable[..., Tensor]
    forward: tuple[str, Any] | None
    backward: tuple[str, Any] | None
    work: float
    """About how many FLOPs (or bytes) it takes, to choose repeats."""
    inplace: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def benches(dtype: str, *, quick: bool, seed: int = 1) -> list[Bench]:
    """Every bench of a dtype. bf16 has no fast units on most CPUs: half as many sizes are enough."""
    dice = random.Random(seed)  # noqa: S311
    kind = DTYPES[dtype]
    share = (0.3 if quick else 1.0) * (1.0 if dtype == "fp32" else 0.5)
    many = lambda count: max(4, round(count * share))  # noqa: E731
    found = [_gemm(dice, dtype, kind) for _ in range(many(60))]
    found += [_small_gemm(dice, dtype, kind) for _ in range(many(16))]
    found += [_batched(dice, dtype, kind) for _ in range(many(24))]
    for causal in (False, True):
        found += [_attention(dice, dtype, kind, causal) for _ in range(many(16))]
    if dtype == "fp32":
        found += [bench for power in _powers(3 if quick else 7) for bench in moving(dice, power)]
    return found


def _powers(count: int) -> list[float]:
    """Elements as powers of two, from small vectors to beyond any cache."""
    return [12.0 + 11.0 * index / (count - 1) for index in range(count)]


def shared_benches(*, seed: int = 3) -> list[Bench]:
    """A few kernels of every kind, for timing them while other ranks run them too: products first, then what moves."""
    dice = random.Random(seed)  # noqa: S311
    kind = DTYPES["fp32"]
    products = [_gemm(dice, "fp32", kind) for _ in range(5)] + [_batched(dice, "fp32", kind) for _ in range(2)]
    products += [_attention(dice, "fp32", kind, causal) for causal in (False, True)]
    names = ("plain", "layernorm", "softmax", "gelu", "accumulate", "copy", "optimizer")
    moved = [bench for power in SHARED_POWERS for bench in moving(dice, power)]
    return products + [bench for bench in moved if bench.forward is not None and bench.forward[0] in names]


SHARED_POWERS = (18.5, 21.5)
"""Elements of what moves bytes on several ranks at once, as powers of two: within the last cache and beyond."""


def _multiple(dice: random.Random, low: float, high: float, step: int = 16) -> int:
    """An odd multiple of `step`, even in logarithm: no power of two but the step itself, so no usual width."""
    drawn = math.exp(dice.uniform(math.log(low), math.log(high)))
    return max(int(drawn / (2 * step)) * 2 * step + step, step)


def _leaves(*sizes: tuple[int, ...], kind: torch.dtype) -> Callable[[], list[Tensor]]:
    return lambda: [torch.randn(*size).to(kind).mul_(0.1).requires_grad_() for size in sizes]


def _gemm(dice: random.Random, dtype: str, kind: torch.dtype) -> Bench:
    while True:
        m, n, k = _multiple(dice, 64, 2400), _multiple(dice, 96, 9000), _multiple(dice, 96, 3000)
        if m * n * k * 2.0 <= LARGEST_FLOPS * (1.0 if dtype == "fp32" else 0.1):
            return _linear(m, n, k, dtype, kind)


def _small_gemm(dice: random.Random, dtype: str, kind: torch.dtype) -> Bench:
    m, n, k = dice.choice((2, 8, 24, 48)), _multiple(dice, 48, 1200), _multiple(dice, 48, 1200)
    return _linear(m, n, k, dtype, kind)


def _linear(m: int, n: int, k: int, dtype: str, kind: torch.dtype) -> Bench:
    both = {name: value + product_terms(n, k, m)[name] for name, value in product_terms(m, k, n).items()}
    return Bench(make=_leaves((m, k), (n, k), kind=kind), run=functional.linear, work=6.0 * m * n * k,
                 forward=(f"gemm.{dtype}", product_terms(m, n, k)), backward=(f"gemm.{dtype}", both))  # fmt: skip


def _batched(dice: random.Random, dtype: str, kind: torch.dtype) -> Bench:
    """Products per expert (few, wide) and per head (many, narrow)."""
    while True:
        if dice.random() < 0.5:
            b, m, n, k = dice.choice((3, 5, 6, 12)), *(_multiple(dice, low, 2000) for low in (32, 96, 96))
        else:
            b, m, n, k = dice.choice((6, 12, 20, 40)), *(_multiple(dice, low, 700) for low in (48, 48, 32))
        if 2.0 * b * m * n * k <= LARGEST_FLOPS * (1.0 if dtype == "fp32" else 0.1):
            break
    back = [product_terms(m, k, n, b), product_terms(k, n, m, b)]
    both = {name: value + back[1][name] for name, value in back[0].items()}
    return Bench(make=_leaves((b, m, k), (b, k, n), kind=kind), run=torch.bmm, work=6.0 * b * m * n * k,
                 forward=(f"batched_gemm.{dtype}", product_terms(m, n, k, b)),
                 backward=(f"batched_gemm.{dtype}", both))  # fmt: skip


def _attention(dice: random.Random, dtype: str, kind: torch.dtype, causal: bool) -> Bench:
    """Heads as a projection leaves them: [batch, tokens, heads, dim], seen as [batch, heads, tokens, dim]."""
    while True:
        b, h = dice.choice((1, 2, 3, 6)), dice.choice((2, 3, 5, 7))
        s, d = _multiple(dice, 48, 900), dice.choice((32, 48, 64, 96))
        if b * h * s * s * d * 4.0 <= LARGEST_FLOPS * (1.0 if dtype == "fp32" else 0.1):
            break
    family = "attention" + ("_causal" if causal else "")
    terms = {name: float(value) for name, value in attention_terms(
        batch=b, heads=h, q_len=s, kv_len=s, width=2 * d, causal=causal).items()}

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal
        )

    return Bench(make=_leaves(*[(b, s, h, d)] * 3, kind=kind), run=run, work=14.0 * b * h * s * s * d,
                 forward=(f"{family}.{dtype}", terms), backward=(f"{family}_grad.{dtype}", terms))  # fmt: skip


def moving(dice: random.Random, power: float) -> list[Bench]:
    """Kernels that move bytes, on about 2^power fp32 elements; bytes are those that `simulator.arch` counts."""
    width = _multiple(dice, 112, 900)
    rows = max(int(2.0**power / width), 1)
    elements = rows * width
    x, two = (rows, width), (rows, 2 * width)
    cases = [
        _point("plain", [x, x], torch.add, elements, 12.0, None),
        _point("layernorm", [x, (width,), (width,)], lambda a, w, b: functional.layer_norm(a, w.shape, w, b),
               elements, 8.0, 12.0),
        _point("rmsnorm", [x, (width,)], lambda a, w: functional.rms_norm(a, w.shape, w, 1e-5), elements, 8.0, 12.0),
        _point("softmax", [x, x], lambda a, b: torch.softmax(a * 0.1 + b, -1), elements, 40.0, 60.0),
        _point("cross_entropy", [x], _cross_entropy, elements, 36.0, 20.0),
        _point("rope", [(1, rows, max(width // 64, 1), 64)], _rotated, rows * max(width // 64, 1) * 64, 40.0, 40.0),
    ]
    for name in ("gelu", "relu", "silu"):
        cases.append(_point(name, [x], lambda a, f=name: activate(a, f), elements, 8.0, 12.0))
        cases.append(_point(f"gated_{name}", [two], lambda a, f=name: _gated(a, f), elements, 20.0, 36.0))
    return [*cases, *_single(rows, width), *_moe(rows, width)]


def _point(name: str, sizes: list[tuple[int, ...]], run: Callable[..., Tensor], elements: int, forward: float,
           backward: float | None) -> Bench:
    back = None if backward is None else (f"{name}_grad", elements * backward)
    return Bench(make=_leaves(*sizes, kind=torch.float32), run=run, work=400.0 * elements,
                 forward=(name, elements * forward), backward=back)  # fmt: skip


def _cross_entropy(logits: Tensor) -> Tensor:
    """As the reference module writes it: log-softmax, the target's entry, the mean."""
    targets = torch.zeros(logits.shape[0], 1, dtype=torch.int64)
    return -functional.log_softmax(logits, -1).gather(-1, targets).mean()


def _gated(x: Tensor, name: str) -> Tensor:
    gate, up = x.chunk(2, -1)
    return activate(gate, name) * up


def _rotated(x: Tensor) -> Tensor:
    table = torch.zeros(x.shape[1], 1, x.shape[-1])
    return rotate(x, table, table)


def _single(rows: int, width: int) -> list[Bench]:
    """Operators that run outside autograd's forward: bias gradients, accumulation, the optimizer, lookups."""
    elements = rows * width

    def tensors(count: int) -> Callable[[], list[Tensor]]:
        return lambda: [torch.zeros(rows, width) for _ in range(count)]

    places = torch.randint(0, 4096, (rows,))
    return [
        Bench(make=tensors(1), run=lambda a: a.sum(0), forward=("row_sum", elements * 4.0), backward=None,
              work=100.0 * elements),
        Bench(make=tensors(2), run=lambda a, b: a.add_(b), forward=("accumulate", elements * 12.0), backward=None,
              work=100.0 * elements, inplace=True),
        Bench(make=lambda: _parts(elements), run=_copied_out, forward=("copy", _parts_bytes(elements)), backward=None,
              work=100.0 * elements, inplace=True),
        Bench(make=tensors(1), run=lambda a: a.div_(2.0), forward=("scale", elements * 8.0), backward=None,
              work=100.0 * elements, inplace=True),
        Bench(make=lambda: [torch.randn(4096, width, requires_grad=True)],
              run=lambda table: functional.embedding(places, table), work=400.0 * elements,
              forward=("lookup", elements * 8.0), backward=("lookup_grad", elements * 8.0)),
        Bench(make=lambda: _states(elements), run=_adam, forward=("optimizer", elements * 40.0), backward=None,
              work=400.0 * elements, inplace=True),
    ]  # fmt: skip


TENSORS = 8
"""Parameter tensors of one optimizer bench and of one copy: a layer has four to twelve."""
HALVES = 2


def _parts(elements: int) -> list[Tensor]:
    """A gathered buffer of two ranks' shares, and the tensors that it is copied out to."""
    each = max(elements // (TENSORS * HALVES), 1)
    return [torch.zeros(HALVES, TENSORS * each), *(torch.zeros(HALVES, each) for _ in range(TENSORS))]


def _parts_bytes(elements: int) -> float:
    return 8.0 * max(elements // (TENSORS * HALVES), 1) * TENSORS * HALVES


def _copied_out(buffer: Tensor, *out: Tensor) -> Tensor:
    """Out of a gathered buffer, as sharded training does it: read and write every element."""
    torch.split_with_sizes_copy(buffer, [part.shape[1] for part in out], 1, out=list(out))
    return out[0]


def _states(elements: int) -> list[Tensor]:
    each = max(elements // TENSORS, 1)
    return [torch.zeros(each) for _ in range(4 * TENSORS)] + [torch.ones(()) for _ in range(TENSORS)]


def _adam(*tensors: Tensor) -> Tensor:
    groups = [list(tensors[index * TENSORS : (index + 1) * TENSORS]) for index in range(5)]
    torch._fused_adamw_(groups[0], groups[1], groups[2], groups[3], [], groups[4], lr=1e-3, beta1=0.9, beta2=0.99,
                        weight_decay=0.01, eps=1e-8, amsgrad=False, maximize=False)
    return groups[0][0]


def _moe(rows: int, width: int) -> list[Bench]:
    """Routing of one expert per token, and the copies into expert order and back, weighted by the gate."""
    order = torch.randperm(rows)
    experts = 8

    def routed(logits: Tensor) -> Tensor:
        values, chosen = torch.softmax(logits.float(), -1).topk(1)
        chosen.flatten().argsort()
        return values

    def both_ways(x: Tensor, gate: Tensor) -> Tensor:
        copied = x.index_select(0, order)
        weighted = copied * gate.index_select(0, order)[:, None]
        return torch.zeros_like(x).index_add(0, order, weighted)

    return [
        _point("router", [(rows, experts)], routed, rows * experts, 24.0, 24.0),
        _point("permute", [(rows, width), (rows,)], both_ways, rows * width, 16.0, 16.0),
    ]
