"""A project adds up: days to hours to dollars, failures to shares, and nothing is guessed in silence."""

from __future__ import annotations

import json
import math

import pytest

import simulator as sim
from simulator.errors import InputError
from simulator.project.checkpoint import checkpoint, checkpoint_writers
from simulator.project.energy import power_of
from simulator.project.training import Conditions, Project
from simulator.project.training import project as whole_project
from tests.support import a100, dgx, gpt

MODEL = gpt(1024, 8, 16)
RUN = sim.Run(global_batch=64)
STRATEGY = sim.Strategy(tp=2, dp=8, micro_batch=2)


def planned(tokens: float | None = 1e9, **conditions: object) -> Project:
    return whole_project(MODEL, dgx(2), RUN, STRATEGY, tokens=tokens, conditions=Conditions(**conditions))


def test_steps_days_hours_and_dollars_follow_from_each_other() -> None:
    answer = planned(price_usd_per_device_hour=2.0)
    assert answer.batch_tokens == pytest.approx(64 * 2048)
    assert answer.steps == math.ceil(1e9 / (64 * 2048))
    assert answer.ideal_days == pytest.approx(answer.steps * answer.estimate.step_time_s / 86400.0)
    assert answer.days == pytest.approx(answer.ideal_days / answer.goodput.useful_fraction)
    assert answer.device_hours == pytest.approx(16 * 24 * answer.days)
    assert answer.usd == pytest.approx(2.0 * answer.device_hours)


def test_without_a_price_or_power_nothing_is_made_up() -> None:
    answer = planned()
    assert (answer.usd, answer.energy_kwh, answer.carbon_kg) == (None, None, None)
    assert answer.provenance["price"] == answer.provenance["power"] == "not known: give one"


def test_energy_and_carbon_are_those_of_the_devices_that_work() -> None:
    answer = planned(watts_per_device=400.0, pue=1.2, carbon_kg_per_kwh=0.5, spare_nodes=1)
    assert answer.spare_devices == 8
    assert answer.energy_kwh == pytest.approx(16 * 24 * answer.days * 0.4 * 1.2)
    assert answer.carbon_kg == pytest.approx(0.5 * (answer.energy_kwh or 0.0))
    assert answer.device_hours == pytest.approx(24 * 24 * answer.days)


def test_power_is_given_measured_or_assumed_and_says_which() -> None:
    assert power_of(a100()) is None
    assert power_of(a100(), 300.0).kind == "given"
    known = sim.load_cluster("dgx-a100").device
    assert power_of(known).watts == pytest.approx(1.1 * 400.0)
    assert power_of(sim.load_cluster("tpu-v4-pod").device).kind == "measured"


def test_more_failures_and_slower_saving_cost_more_days() -> None:
    base = planned().days
    assert planned(device_mtbf_s=3e6).days > base
    assert planned(restart_s=7200.0).days > base
    assert planned(storage_bytes_per_s=1e6).days > base
    assert planned(spread_fraction=0.02).days == pytest.approx(base * 1.0354, rel=1e-3)
    assert planned(storage_bytes_per_s=1e6, asynchronous=True).days < planned(storage_bytes_per_s=1e6).days


def test_tokens_default_to_twenty_per_parameter() -> None:
    answer = planned(None)
    assert answer.tokens == 20 * answer.active_parameters
    assert answer.optimal_tokens["20 per parameter"] == answer.tokens


def test_a_batch_above_the_critical_one_is_said() -> None:
    big = whole_project(MODEL, dgx(2), sim.Run(global_batch=65536), STRATEGY, tokens=1e10)
    assert big.batch_tokens > big.critical_batch_tokens
    assert any("critical batch" in note for note in big.notes)
    assert big.steps_over_fewest < 2.0


def test_the_document_is_json_without_nan() -> None:
    text = json.dumps(planned(price_usd_per_device_hour=1.0, watts_per_device=1.0).to_dict(), allow_nan=False)
    assert json.loads(text)["goodput"]["failures_per_day"] > 0


@pytest.mark.parametrize(
    ("tokens", "conditions", "said"),
    [
        (0.5, {}, "between 1 and"),
        (1e19, {}, "between 1 and"),
        (1e9, {"pue": 0.9}, "pue(0.9)"),
        (1e9, {"device_mtbf_s": 0.0}, "device_mtbf_s(0)"),
        (1e9, {"restart_s": math.inf}, "restart_s(inf)"),
        (1e9, {"price_usd_per_device_hour": math.nan}, "price_usd_per_device_hour(nan)"),
        (1e9, {"spread_fraction": 0.7}, "no spread"),
        (1e9, {"device_mtbf_s": 1.0}, "makes no progress"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(tokens: float, conditions: dict[str, float], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        planned(tokens, **conditions)
    assert said in str(refusal.value)


def test_every_bad_condition_is_reported_at_once() -> None:
    with pytest.raises(InputError) as refusal:
        planned(0.0, pue=0.0, repair_s=-1.0)
    assert len(refusal.value.problems) == 3


def test_sharded_states_are_written_by_every_device() -> None:
    assert checkpoint_writers(sim.Strategy(tp=8, pp=4, dp=16)) == 32
    assert checkpoint_writers(sim.Strategy(tp=8, pp=4, dp=16, zero=1)) == 512
    assert checkpoint_writers(sim.Strategy(pp=2, dp=64, ep=8)) == 16


def test_an_asynchronous_checkpoint_blocks_for_the_copy_only() -> None:
    one = checkpoint(1e12, 64, storage_bytes_per_s=10e9, asynchronous=True)
    assert one.write_s == 100.0
    assert one.blocking_s == pytest.approx(1e12 / 64 / 20e9)
    assert one.lag_s == pytest.approx(100.0 - one.blocking_s)
    assert checkpoint(1e12, 64, storage_bytes_per_s=1e15, asynchronous=True).lag_s == 0.0
