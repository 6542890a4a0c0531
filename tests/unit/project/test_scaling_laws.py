"""Scaling laws against the figures of their papers, a grid search, and their own inverses."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.project.scaling_laws import (
    BESIROGLU,
    HOFFMANN,
    LAWS,
    ScalingLaw,
    compute_optimal,
    critical_batch_tokens,
    loss,
    off_optimum,
    optimal_tokens,
    training_flops,
)


@pytest.mark.parametrize("law", LAWS.values(), ids=lambda law: law.name)
@pytest.mark.parametrize("budget", [1e19, 2.21e19, 5.76e23, 1e26])
def test_the_closed_form_is_where_a_grid_search_finds_the_least_loss(law: ScalingLaw, budget: float) -> None:
    sizes = np.geomspace(1e6, 1e14, 200_001)
    losses = (
        law.floor + law.parameter_scale / sizes**law.parameter_power
        + law.token_scale / (budget / (6.0 * sizes)) ** law.token_power
    )  # fmt: skip
    best = sizes[losses.argmin()]
    parameters, tokens = compute_optimal(budget, law)
    assert parameters == pytest.approx(best, rel=2e-3)
    assert training_flops(parameters, tokens) == pytest.approx(budget, rel=1e-12)
    assert loss(law, parameters, tokens) == pytest.approx(losses.min(), rel=1e-9)


def test_approach_three_at_the_notebooks_budget() -> None:
    parameters, tokens = compute_optimal(2.21e19, HOFFMANN)
    assert (round(parameters / 1e6), round(tokens / 1e9, 1)) == (326, 11.3)


def test_the_replication_agrees_with_chinchilla_and_approach_three_does_not() -> None:
    for law, size, per_parameter in ((BESIROGLU, 72e9, 18.4), (HOFFMANN, 32e9, 93.0)):
        parameters, tokens = compute_optimal(5.76e23, law)
        assert parameters == pytest.approx(size, rel=0.02)
        assert tokens / parameters == pytest.approx(per_parameter, rel=0.02)


@pytest.mark.parametrize("law", LAWS.values(), ids=lambda law: law.name)
def test_optimal_tokens_is_the_inverse_of_the_optimum(law: ScalingLaw) -> None:
    parameters, tokens = compute_optimal(3.3e22, law)
    assert optimal_tokens(parameters, law) == pytest.approx(tokens, rel=1e-9)


def test_steps_and_tokens_off_the_optimum_lie_on_the_hyperbola() -> None:
    for batch in (1e5, 1e6, 7e6):
        steps, tokens = off_optimum(batch, 2e6)
        assert (steps - 1.0) * (tokens - 1.0) == pytest.approx(1.0)


def test_the_critical_batch_grows_as_the_loss_falls() -> None:
    assert critical_batch_tokens(1.0) == 2.1e8
    assert critical_batch_tokens(2.0) / critical_batch_tokens(4.0) == pytest.approx(2**4.8)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_what_has_no_optimum_is_refused(bad: float) -> None:
    for call in (compute_optimal, optimal_tokens):
        with pytest.raises(InputError):
            call(bad)


def test_a_loss_that_is_not_positive_is_refused() -> None:
    with pytest.raises(InputError, match="not positive"):
        critical_batch_tokens(0.0)
