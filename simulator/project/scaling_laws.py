"""How many tokens a model wants, what loss they buy, and the batch beyond which more devices buy little."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import InputError

FLOPS_PER_PARAMETER_TOKEN = 6.0
"""Forward 2, backward 4 (Kaplan 2020 sec. 2.1; Hoffmann 2022 appendix F)."""
TOKENS_PER_PARAMETER = 20.0
"""Approaches 1 and 2 of Hoffmann 2022: parameters and tokens grow alike (70B and 1.4T at 5.76e23 FLOP)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingLaw:
    """L(N, D) = floor + parameter_scale / N^parameter_power + token_scale / D^token_power, in nats per token."""

    name: str
    floor: float
    parameter_scale: float
    parameter_power: float
    token_scale: float
    token_power: float
    source: str


HOFFMANN = ScalingLaw(
    name="hoffmann", floor=1.69, parameter_scale=406.4, parameter_power=0.34, token_scale=410.7, token_power=0.28,
    source="Hoffmann 2022 approach 3, as printed in karpathy/nanoGPT scaling_laws.ipynb",
)  # fmt: skip
BESIROGLU = ScalingLaw(
    name="besiroglu", floor=1.82, parameter_scale=482.0, parameter_power=0.3478, token_scale=2085.4,
    token_power=0.3658,
    source="Besiroglu 2024 (arXiv 2404.10102), a refit of the same runs; coefficients not checked at the source",
)  # fmt: skip
LAWS = {law.name: law for law in (BESIROGLU, HOFFMANN)}
CAVEAT = (
    "Hoffmann 2022's approach 3 disagrees with its own approaches 1 and 2: it asks for about 93 tokens per parameter "
    "at 5.76e23 FLOP. The replication (Besiroglu 2024) blames an optimizer that stopped early and rounded "
    "coefficients; its refit gives about 18, in line with the 20 of approaches 1 and 2."
)


def training_flops(parameters: float, tokens: float) -> float:
    """C = 6 N D [FLOP] (Kaplan 2020).

    >>> f"{training_flops(175e9, 300e9):.3g}"
    '3.15e+23'
    """
    return FLOPS_PER_PARAMETER_TOKEN * parameters * tokens


def loss(law: ScalingLaw, parameters: float, tokens: float) -> float:
    """Predicted loss [nats per token] of N parameters trained on D tokens."""
    return float(
        law.floor + law.parameter_scale / parameters**law.parameter_power + law.token_scale / tokens**law.token_power
    )


def compute_optimal(flops: float, law: ScalingLaw = BESIROGLU) -> tuple[float, float]:
    """Parameters and tokens of least loss at a budget [FLOP]: N = G (C / 6)^(b / (a + b)), D = C / (6 N).

    Closed form of Hoffmann 2022 eq. 4, G = (a A / (b B))^(1 / (a + b)). Raises InputError for a budget of zero or less.

    >>> n, d = compute_optimal(5.76e23, HOFFMANN)
    >>> f"{n / 1e9:.0f}B {d / 1e12:.2f}T"
    '32B 2.98T'
    """
    if not 0 < flops < float("inf"):
        raise InputError([f"a budget of {flops:g} FLOP trains nothing; give a positive one such as 5.76e23."])
    a, b = law.parameter_power, law.token_power
    scale = (a * law.parameter_scale / (b * law.token_scale)) ** (1.0 / (a + b))
    parameters = float(scale * (flops / FLOPS_PER_PARAMETER_TOKEN) ** (b / (a + b)))
    return parameters, flops / (FLOPS_PER_PARAMETER_TOKEN * parameters)


def optimal_tokens(parameters: float, law: ScalingLaw | None = BESIROGLU) -> float:
    """Tokens for which a model of N parameters is compute-optimal; None is 20 tokens per parameter.

    The inverse of `compute_optimal`: D = N^(a / b) G^(-(a + b) / b).
    Raises InputError for a model without parameters.

    >>> optimal_tokens(70e9, None)
    1400000000000.0
    """
    if not 0 < parameters < float("inf"):
        raise InputError([f"a model of {parameters:g} parameters has no optimal number of tokens."])
    if law is None:
        return TOKENS_PER_PARAMETER * parameters
    a, b = law.parameter_power, law.token_power
    ratio = b * law.token_scale / (a * law.parameter_scale)
    return float((ratio * parameters**a) ** (1.0 / b))


def critical_batch_tokens(loss_nats: float) -> float:
    """Tokens per step beyond which a larger batch saves few steps: 2.1e8 L^-4.8 (Kaplan 2020, dashed line of fig. 10).

    Later measurements find that it grows with the data seen and hardly with the model (Zhang 2024; Bergsma 2025), so
    it is an order of magnitude, and near zero when training begins (OLMo 2 warms its batch up). Raises InputError for
    a loss that is not positive.

    >>> f"{critical_batch_tokens(2.0) / 1e6:.1f}M"
    '7.5M'
    """
    if not loss_nats > 0:
        raise InputError([f"a loss of {loss_nats:g} nats is not positive."])
    return float(2.1e8 * loss_nats**-4.8)


def off_optimum(batch_tokens: float, critical_tokens: float) -> tuple[float, float]:
    """Steps over the fewest, and tokens over the fewest, at a batch: 1 + c / b and 1 + b / c.

    McCandlish 2018 eq. 2.11: (S / S_min - 1)(D / D_min - 1) = 1; both double at the critical batch.

    >>> off_optimum(1e6, 1e6)
    (2.0, 2.0)
    """
    return 1.0 + critical_tokens / batch_tokens, 1.0 + batch_tokens / critical_tokens
