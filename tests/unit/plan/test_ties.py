"""Ties: shares of mispredicted pairs by hand, the probability read off them, and what a plan calls a tie."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

import simulator as sim
from simulator.errors import InputError
from simulator.plan import ties
from simulator.plan.ties import APART, Differences, faster_probability, read_differences, write_differences
from simulator.report.plan import plan_text
from simulator.validate.pairs import MIN_PAIRS, differences_of
from tests.support import dgx, gpt


def _row(family, peers, measured_s, predicted_s=1.0):
    return SimpleNamespace(family=family, peers=peers, measured_s=measured_s, predicted_s=predicted_s)


def test_pairs_compete_within_their_set_and_families_of_one_kin_count_as_one() -> None:
    # Five runs of one set: ten pairs, four of them with the one that was measured e^0.3 times as long as predicted.
    rows = [_row("vtrain", ("a",), s) for s in (1.0, 1.0, 1.0, 1.0, math.exp(0.3))]
    rows += [_row("vtrain", ("alone",), 9.0), _row("vtrain", ("a",), None)]
    rows += [_row("nvidia_dgxc", ("a",), 1.0), _row("nvidia_nemo_docs", ("a",), 3.0)]
    (found,) = differences_of(rows)
    assert (found.family, found.sets, found.pairs) == ("vtrain", 1, 10)
    assert found.pairs >= MIN_PAIRS
    expected = [0.4 if step < 0.3 - 1e-12 else 0.0 for step in APART]
    assert [share for share, step in zip(found.shares, APART, strict=True) if step != 0.3] == pytest.approx(
        [share for share, step in zip(expected, APART, strict=True) if step != 0.3]
    )
    kept = Differences("alpa_v100", 2, 20, (0.0,) * len(APART))
    assert [each.family for each in differences_of(rows, [kept, found])] == ["alpa_v100", "vtrain"]


def test_the_probability_is_half_of_the_families_mean_share(monkeypatch) -> None:
    flat = Differences("one", 1, 10, tuple(0.8 if step < 0.1 else 0.0 for step in APART))
    steep = Differences("other", 1, 10, tuple(0.4 if step < 0.1 else 0.0 for step in APART))
    monkeypatch.setattr(ties, "published_differences", lambda: (flat, steep))
    assert faster_probability(math.exp(0.05), 1.0) == pytest.approx(0.5 * (0.8 + 0.4) / 2)
    assert faster_probability(math.exp(0.0875), 1.0) == pytest.approx(0.5 * (0.4 + 0.2) / 2)
    assert faster_probability(2.0, 1.0) == 0.0
    assert faster_probability(1.0, 2.0) == 1.0
    monkeypatch.setattr(ties, "published_differences", lambda: ())
    assert faster_probability(5.0, 1.0) == 0.5


def test_the_shipped_shares_fall_with_distance_and_are_published_runs(root) -> None:
    found = read_differences(root / "validation" / "differences.csv")
    assert len(found) >= 8
    assert sum(family.pairs for family in found) > 3000
    for family in found:
        assert list(family.shares) == sorted(family.shares, reverse=True)
        assert 0.0 <= family.shares[-1] <= family.shares[0] <= 1.0
    chances = [faster_probability(1.0 + apart, 1.0) for apart in (0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 2.0)]
    assert chances == sorted(chances, reverse=True)
    assert chances[1] > 0.3, "one percent apart is hardly told apart"
    assert chances[5] < 0.1, "half as long again is told apart"


def test_files_round_trip_and_broken_ones_are_said(tmp_path) -> None:
    path = tmp_path / "differences.csv"
    families = (Differences("one", 3, 12, tuple(1.0 / (n + 1) for n in range(len(APART)))),)
    write_differences(path, families, "why")
    (read,) = read_differences(path)
    assert (read.family, read.sets, read.pairs) == ("one", 3, 12)
    assert read.shares == pytest.approx(families[0].shares, abs=1e-6)
    path.write_text("family,sets\none,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="not a table of differences"):
        read_differences(path)


def test_a_plan_marks_as_ties_what_may_be_measured_faster() -> None:
    model, run = gpt(1024, 8, 16, seq_len=512), sim.Run(global_batch=16, seq_len=512)
    plan = sim.plan(model, dgx(1), run, limit=300, within={"vp": (1, 1), "pp": (1, 2)}, fix={"cp": 1})
    best = plan[0]
    assert best.tied
    assert best.faster_probability == 0.5
    chances = [entry.faster_probability for entry in plan]
    assert chances == sorted(chances, reverse=True)
    assert {entry.tied for entry in plan[1:]} == {True, False}
    for entry in plan[1:]:
        ratio = entry.estimate.step_time_s / best.estimate.step_time_s
        assert entry.tied == (ratio == 1.0 or 0.5 * ties._share_over(math.log(ratio)) >= 0.1)
        assert entry.why
        assert entry.binds.startswith(max(entry.estimate.time.parts.items(), key=lambda part: part[1])[0])
    assert "tie: the chance" in plan_text(plan)
    least = sim.plan(model, dgx(1), run, objective="memory", limit=5, within={"pp": (1, 2)}, fix={"cp": 1, "vp": 1})
    assert not any(entry.tied for entry in least[1:])


def test_the_time_shown_is_that_of_a_rank_and_says_which() -> None:
    model, run = gpt(1024, 8, 16, seq_len=512), sim.Run(global_batch=16, seq_len=512)
    answer = sim.estimate(model, dgx(1), run, sim.Strategy(pp=4, dp=2))
    assert answer.time.rank == 0, "under 1F1B the first rank's last backward ends the step"
    piped = sim.plan(model, dgx(1), run, fix={"pp": 4, "dp": 2}, limit=1)
    assert f"of pipeline rank {piped[0].estimate.time.rank} (0 to 3)" in plan_text(piped)
