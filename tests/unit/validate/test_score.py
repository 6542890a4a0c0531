"""Scores and the report from an estimator that can be computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from simulator.validate.report import read_reasons, reason_of, report_text, write_report
from simulator.validate.score import Scores, score
from tests.unit.validate.support import PEAK, Answer, World, flops_over_peak, row

IDEAL_S = 6 * 12 * 4 * 64**2 * 16 * 128 / (PEAK * 8)


def scores() -> Scores:
    rows = [
        row(run_id="a", step_time_s=2 * IDEAL_S),
        row(run_id="b", tp=1, dp=8, step_time_s=2 * IDEAL_S),
        row(run_id="c", family="g", outcome="oom", step_time_s=None),
        row(run_id="d", family="g", schedule="other", pp=2, dp=2),
        row(run_id="e", family="g", tp=None, dp=None, step_time_s=IDEAL_S, peak_memory_bytes=2e9),
    ]
    return score(rows, flops_over_peak, World())


def test_errors_are_signed_and_relative() -> None:
    by_id = {r.run_id: r for r in scores().rows}
    assert by_id["a"].error == pytest.approx(0.0)
    assert by_id["b"].error == pytest.approx(-0.5)
    assert by_id["c"].error is None


def test_of_candidates_the_fastest_that_fits_is_scored() -> None:
    by_id = {r.run_id: r for r in scores().rows}
    assert by_id["e"].strategy == "dp8 mb1"
    assert by_id["e"].predicted_s == pytest.approx(IDEAL_S)

    def only_split_fits(model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy) -> Answer:
        return Answer(float(strategy.tp), fits=strategy.tp >= 4)

    found = score([row(tp=None, dp=None)], only_split_fits, World()).rows[0]
    assert found.strategy == "tp4 dp2 mb1"

    def none_fits(model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy) -> Answer:
        return Answer(float(strategy.tp), fits=False, peak_memory_bytes=1 / strategy.tp)

    assert score([row(tp=None, dp=None)], none_fits, World()).rows[0].strategy == "tp8 mb1"


def test_more_recompute_counts_only_where_less_does_not_fit() -> None:
    def needs_some(model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy) -> Answer:
        return Answer(1.0, fits=strategy.recompute == "full")

    assert score([row(recompute=None)], needs_some, World()).rows[0].strategy.endswith("recompute-1-layers")
    assert score([row(recompute=None)], flops_over_peak, World()).rows[0].strategy == "tp2 dp4 mb1"


def test_the_document_has_the_contracts_keys() -> None:
    document = scores().to_json()
    assert (document["runs"], document["scored"], document["skipped"]) == (5, 4, {"schedule other": 1})
    assert list(document["by_family"]) == ["f", "g"]
    assert document["by_family"]["f"]["mean"] == pytest.approx(0.25)
    assert document["by_family"]["g"]["skipped"] == 1
    assert document["by_family"]["g"]["memory"]["bias"] == pytest.approx(-0.5)
    assert document["by_family"]["g"]["out_of_memory"]["recall"] == 0.0
    assert document["by_regime"]["kind=dense"]["rows"] == 3
    assert set(document["rows"][0]) >= {
        "run_id", "family", "predicted_s", "low_s", "high_s", "measured_s", "error", "predicted_peak_bytes",
        "measured_peak_bytes", "predicted_fits", "outcome",
    }  # fmt: skip
    json.dumps(document, allow_nan=False)


def test_one_constant_per_group_is_the_bar() -> None:
    """Both runs of family f took the same time; the ideal of both is the same: one constant is exact."""
    assert scores().by_family()["f"]["constant"]["mean"] == pytest.approx(0.0)


def test_runs_of_one_model_and_batch_are_ranked() -> None:
    assert scores().by_family()["f"]["ranking"] == {"sets": 0}
    rows = [row(run_id="a", step_time_s=3.0), row(run_id="b", tp=1, dp=8, step_time_s=2.0)]
    assert score(rows, flops_over_peak, World()).by_family()["f"]["ranking"]["tau"] == 1.0


def test_what_the_estimator_refuses_is_a_skip() -> None:
    def refuses(model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy) -> Answer:
        raise InputError(["heads: tp(2) does not divide them."])

    (skipped,) = score([row()], refuses, World()).skipped
    assert skipped.reason == "refused by the model of the software: heads"
    assert "tp(2)" in skipped.detail


def test_a_rows_interval_ignores_its_own_family() -> None:
    rows = [row(run_id=f"{family}{i}", family=family, step_time_s=2 * IDEAL_S * factor)
            for family, factor in (("f", 1.0), ("g", 3.0)) for i in range(30)]  # fmt: skip
    found = score(rows, flops_over_peak, World())
    by_id = {r.run_id: r for r in found.rows}
    assert by_id["f0"].low_s == pytest.approx(3 * by_id["f0"].predicted_s)
    assert by_id["g0"].high_s == pytest.approx(by_id["g0"].predicted_s)
    assert found.by_family()["f"]["interval"]["covered"] == 0.0
    again = score(rows[:30], flops_over_peak, World(), residuals=found.residuals)
    assert again.rows == found.rows[:30]


def test_the_report_names_families_reasons_and_skips(tmp_path: Path) -> None:
    path = write_report(scores(), tmp_path / "out", reasons={"b": "half of it is missing"})
    text = path.read_text()
    assert "| f | 2 | 0 | 25.0 % |" in text
    assert "half of it is missing" in text
    assert "schedule other" in text
    assert (tmp_path / "out" / "plots" / "f.svg").is_file()
    assert (tmp_path / "out" / "residuals.csv").read_text().count("\n") == 5
    plots = {"f": Path("plots/f.svg"), "g": Path("plots/g.svg")}
    assert text == report_text(scores(), {"b": "half of it is missing"}, plots, {})


def test_reasons_match_ids_first_then_expressions(tmp_path: Path) -> None:
    path = tmp_path / "reasons.toml"
    path.write_text('"vtr-1" = "one"\n"vtr-.*" = "all"\n"bert_dle" = "family"\n')
    reasons = read_reasons(path)
    assert [reason_of(i, f, reasons) for i, f in (("vtr-1", "v"), ("vtr-2", "v"), ("x", "bert_dle"), ("x", "y"))] == [
        "one", "all", "family", "",
    ]  # fmt: skip
    path.write_text('"[" = "x"\na = 1\n')
    with pytest.raises(InputError) as caught:
        read_reasons(path)
    assert len(caught.value.problems) == 2
