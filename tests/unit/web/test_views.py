"""What the page is told: states read politely, pictures and neighbours equal to the estimate's own numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

import simulator as sim
from simulator.errors import InputError
from simulator.units import format_bytes, format_time
from simulator.web.state import FIELDS, MAX_TASKS, START, dial_values, read_case
from simulator.web.views import catalogue_view, estimate_view, plan_view, scatter_view

SMALL: dict[str, Any] = {
    "model": "gpt3-6.7b", "cluster": "dgx-a100", "nodes": 2, "global_batch": 32, "tp": 2, "pp": 2, "seq_len": 2048,
}  # fmt: skip


def state(**change: Any) -> dict[str, Any]:
    return {**SMALL, **change}


def problems(**change: Any) -> list[Any]:
    with pytest.raises(InputError) as caught:
        estimate_view({"state": state(**change)})
    return list(caught.value.problems)


def test_a_state_means_what_the_library_means() -> None:
    found = read_case(state(zero=1))
    run = sim.Run(global_batch=32, seq_len=2048)
    direct = sim.estimate(sim.load_model("gpt3-6.7b"), sim.load_cluster("dgx-a100", nodes=2), run,
                          sim.Strategy(tp=2, pp=2, dp=4, zero=1))  # fmt: skip
    assert (found.run, found.strategy) == (run, sim.Strategy(tp=2, pp=2, dp=4, zero=1))
    assert found.said == ("dp = 4: what tp, cp and pp leave of 16 devices.",)
    scatter = scatter_view({"state": state(zero=1)})
    shown = next(shape for shape in scatter["picture"]["shapes"] if "current" in str(shape[1].get("class")))
    assert shown[3] == f"this strategy: {format_time(direct.step_time_s)}, {format_bytes(direct.peak_memory_bytes)}"


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        ({"model": "gpt3-6.7"}, "model", "Did you mean gpt3-6.7b?"),
        ({"model": "<script>alert(1)</script>"}, "model", "path"),
        ({"model": "<b>"}, "model", "no model name"),
        ({"model": "../../etc/passwd"}, "model", "path"),
        ({"model": "/etc/passwd.toml"}, "model", "path"),
        ({"cluster": "x.toml"}, "cluster", "path"),
        ({"framework": "megatron"}, "framework", "no framework"),
        ({"nodes": -1}, "nodes", ""),
        ({"tp": "8"}, "tp", "whole number"),
        ({"tp": True}, "tp", "whole number"),
        ({"tp": 2.0}, "tp", "whole number"),
        ({"tp": None}, "tp", "whole number"),
        ({"tp": 3}, "tp", "heads"),
        ({"tp": 0}, "tp", "at least 1"),
        ({"tp": 2**60}, "tp", "2^53"),
        ({"schedule": "1f1"}, "schedule", "Did you mean 1f1b?"),
        ({"schedule": "x" * 65}, "schedule", "longer"),
        ({"layers_per_stage": "16,x"}, "layers_per_stage", "whole numbers"),
        ({"layers_per_stage": "16,15"}, "layers_per_stage", "sums to 31"),
        ({"layers_per_stage": "1" * 1025}, "layers_per_stage", "longer"),
        ({"order": "tp-dp"}, "order", "once each"),
        ({"color": 1}, "state", "no setting"),
        ({"zer": 1}, "state", "Did you mean zero?"),
        ({"global_batch": 33}, "global_batch", "nearest batch"),
        ({"global_batch": 2 * MAX_TASKS}, "global_batch", "more than this page simulates"),
    ],
)
def test_bad_settings_are_refused_with_place_and_reason(change: dict[str, Any], where: str, words: str) -> None:
    found = problems(**change)
    assert any(p.where == where and words in f"{p.message} {p.hint}" for p in found), found


def test_every_wrong_name_is_reported_at_once() -> None:
    assert {p.where for p in problems(model="nope", cluster="neither", framework="nor")} == {
        "model", "cluster", "framework",
    }  # fmt: skip


@pytest.mark.parametrize("given", [None, [], "x", 1])
def test_a_state_is_an_object(given: Any) -> None:
    for view in (estimate_view, scatter_view, plan_view):
        with pytest.raises(InputError, match="object"):
            view({"state": given})


def test_every_view_is_json_without_nan() -> None:
    for view in (catalogue_view(), estimate_view({"state": state()}), scatter_view({"state": state()})):
        assert json.loads(json.dumps(view, allow_nan=False)) == json.loads(json.dumps(view))


def test_the_first_state_runs_and_stands_in_the_catalogue() -> None:
    view = catalogue_view()
    assert view["start"] == dict(START)
    assert set(START) <= set(FIELDS)
    assert START["model"] in view["names"]["models"]
    assert estimate_view({"state": dict(START)})["document"]["fits"] is True


def test_each_dial_offers_the_present_value_and_only_splits_of_the_devices() -> None:
    case = read_case(state(tp=2, pp=2))
    stops = dial_values(case)
    for name, values in stops.items():
        assert values == sorted(set(values)), name
        holder = next(each for each in (case.strategy, case.run, case.cluster) if hasattr(each, name))
        assert getattr(holder, name) in values, name
    assert stops["tp"] == [1, 2, 4, 8, 16]
    assert stops["ep"] == [1]
    assert all(16 % value == 0 for name in ("tp", "pp", "dp", "cp") for value in stops[name])


def test_a_model_with_experts_has_an_expert_dial() -> None:
    case = read_case(state(model="mixtral-8x7b", seq_len=4096, tp=1, pp=1))
    assert dial_values(case)["ep"] == [1, 2, 4, 8]


def test_a_neighbour_is_the_estimate_of_its_settings() -> None:
    view = scatter_view({"state": state()})
    by_name = {row["name"]: row for row in view["nearby"]}
    change = view["points"][by_name["tp 4"]["key"]]
    assert change == {"tp": 4}
    there = estimate_view({"state": state(tp=4)})["document"]
    assert by_name["tp 4"]["step"] == there["headline"][0]["value"]
    assert by_name["tp 4"]["memory"] == there["headline"][3]["value"]
    fitting = [row["fits"] for row in view["nearby"]]
    assert fitting == sorted(fitting, reverse=True)


def test_the_first_answer_holds_bounds_of_the_neighbours_and_the_next_ones_simulate_them() -> None:
    first = estimate_view({"state": state()})["scatter"]
    whole = scatter_view({"state": state()})
    assert first["points"] == whole["points"]
    assert (first["left"], whole["left"]) == (len(whole["nearby"]), 0)
    assert {row["bound"] for row in first["nearby"]} == {True}
    tips = [shape[3] for shape in first["picture"]["shapes"] if "neighbour" in str(shape[1].get("class"))]
    assert len(tips) == len(whole["nearby"])
    assert all(": at least " in tip for tip in tips)
    some = scatter_view({"state": state(), "simulate": 3})
    assert some["left"] == len(whole["nearby"]) - 3
    assert sum(not row["bound"] for row in some["nearby"]) == 3
    exact = {row["key"]: row for row in whole["nearby"]}
    assert all(row == exact[row["key"]] for row in some["nearby"] if not row["bound"])
    assert not any(row["bound"] for row in whole["nearby"])


@pytest.mark.parametrize("simulate", [-5, 0, 10**9, "3", None, True])
def test_how_many_to_simulate_is_read_with_care(simulate: Any) -> None:
    view = scatter_view({"state": state(), "simulate": simulate})
    assert view["left"] in {0, len(view["nearby"])}
    assert (view["left"] > 0) == (simulate in (-5, 0))


def test_neighbours_without_bounds_wait_for_their_simulation() -> None:
    partly = state(recompute="full", recompute_layers=4)
    assert estimate_view({"state": partly})["scatter"]["nearby"] == []
    assert scatter_view({"state": partly})["nearby"]


def test_virtual_stages_bring_their_schedule() -> None:
    view = scatter_view({"state": state()})
    assert {"vp": 2, "schedule": "interleaved"} in view["points"].values()


def test_planned_points_are_drawn_and_lead_to_their_settings() -> None:
    point = {"step_time_s": 1.5, "peak_bytes": 2.0**34, "change": {"tp": 8}, "label": "<b>tp 8</b>"}
    view = scatter_view({"state": state(), "planned": [point]})
    assert view["points"]["p0"] == {"tp": 8}
    shape = next(s for s in view["picture"]["shapes"] if s[4].get("point") == "p0")
    assert shape[3] == "<b>tp 8</b>: 1.5 s, 16 GiB"


@pytest.mark.parametrize(
    "point", [1, {}, {"step_time_s": "x"}, {"step_time_s": float("nan"), "peak_bytes": 1, "change": {}, "label": ""},
              {"step_time_s": -1, "peak_bytes": 1, "change": {}, "label": ""},
              {"step_time_s": 1, "peak_bytes": 1, "change": 3, "label": ""}],
)  # fmt: skip
def test_points_that_are_no_points_are_refused(point: Any) -> None:
    with pytest.raises(InputError, match="planned"):
        scatter_view({"state": state(), "planned": [point]})


def test_a_split_and_an_order_of_ones_own_are_settings() -> None:
    case = read_case(state(layers_per_stage="20,12", order="tp-cp-ep-pp-dp"))
    order = ("tp", "cp", "ep", "pp", "dp")
    assert case.strategy == sim.Strategy(tp=2, pp=2, dp=4, layers_per_stage=(20, 12), order=order)
    assert read_case(state(layers_per_stage="")).strategy.layers_per_stage == ()
    view = scatter_view({"state": state(layers_per_stage="20,12")})
    assert {"pp": 4, "layers_per_stage": ""} in view["points"].values()
    assert "pp 4" in {row["name"] for row in view["nearby"]}


def test_every_planned_strategy_is_reached_whole() -> None:
    """What a row promises is what its settings give: splits, placements and partial recomputation included."""
    here = {**SMALL, "model": "gpt3-13b", "nodes": 1, "seq_len": 2048}
    bare = {name: value for name, value in here.items() if name not in ("tp", "pp")}
    for row in plan_view({"state": here})["rows"]:
        there = estimate_view({"state": {**bare, **row["change"]}})["document"]
        assert there["headline"][0]["value"] == row["step"], row["label"]
        assert there["headline"][3]["value"] == row["memory"], row["label"]


def test_a_plan_leads_to_the_strategy_it_names() -> None:
    view = plan_view({"state": state(tp=3)})
    best = view["rows"][0]
    assert "legal" in view["proof"]
    after = estimate_view({"state": {**{k: v for k, v in state().items() if k != "dp"}, **best["change"]}})
    assert after["document"]["headline"][0]["value"] == best["step"]
    assert after["document"]["fits"]
    times = [row["step_time_s"] for row in view["rows"]]
    assert times == sorted(times)


def test_the_page_is_drawn_as_wide_as_it_is_within_reason() -> None:
    def width(asked: Any) -> int:
        return int(estimate_view({"state": state(), "width": asked})["pictures"][0]["width"])

    assert [width(w) for w in (500, 10**9, -5, "x", None)] == [500, 1200, 280, 640, 640]
