"""Recomputed layers stage by stage, from the command line to the answer and out again."""

from __future__ import annotations

import json
import shlex

import pytest

from simulator import catalog
from simulator.cli import run
from simulator.estimate import estimate
from simulator.report.document import command_line
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from simulator.web.state import START, read_case

CASE = ["gpt3-13b", "dgx-a100", "--nodes", "2", "--tp", "4", "--pp", "4", "--global-batch", "32", "--recompute", "full"]


def _answer(capsys, *words: str):
    assert run(["estimate", *CASE, *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_list_on_the_command_line_and_in_a_file_is_one_strategy(capsys, tmp_path) -> None:
    listed = _answer(capsys, "--recompute-layers", "5,3,2,0")
    assert listed["strategy"]["recompute_layers"] == [5, 3, 2, 0]
    path = tmp_path / "strategy.toml"
    path.write_text("recompute_layers = [5, 3, 2, 0]\n")
    assert _answer(capsys, "--strategy", str(path)) == listed
    path.write_text("recompute_layers = 3\n")
    assert _answer(capsys, "--strategy", str(path)) == _answer(capsys, "--recompute-layers", "3")
    for wrong in ("5,x", "5*", "5*0", "5*2*3", "5*99999999"):
        assert run(["estimate", *CASE, "--recompute-layers", wrong]) == 2
        assert "whole numbers" in capsys.readouterr().err


def test_the_command_of_a_report_and_its_words_say_the_list(capsys) -> None:
    model, cluster = catalog.load_model("gpt3-13b"), catalog.load_cluster("dgx-a100", nodes=2)
    strategy = Strategy(tp=4, pp=4, recompute="full", recompute_layers=(5, 3, 3, 0))
    answer = estimate(model, cluster, Run(global_batch=32), strategy)
    words = shlex.split(command_line(answer, 2))
    assert words[words.index("--recompute-layers") + 1] == "5,3,3,0"
    assert run(words[1:]) == 0
    assert "recompute full (5,3*2,0 layers by stage)" in " ".join(capsys.readouterr().out.split())
    assert run([*words[1:], "--why", "time.recompute"]) == 0
    assert "recompute_layers = 5,3,3,0" in capsys.readouterr().out


def test_what_a_table_prints_can_be_typed_again(capsys) -> None:
    assert _answer(capsys, "--recompute-layers", "5,3*2,0") == _answer(capsys, "--recompute-layers", "5,3,3,0")


@pytest.mark.parametrize("form", ["megatron", "megatron-bridge"])
def test_what_says_one_number_refuses_a_list_and_names_one_that_fits(capsys, form) -> None:
    assert run(["export", form, *CASE, "--recompute-layers", "5,3,2,0"]) == 2
    said = capsys.readouterr().err
    assert "one number" in said
    assert "recompute_layers = 5" in said
    assert "recompute_stages=alike" in said
    assert run(["export", form, *CASE, "--recompute-layers", "5"]) == 0


def test_the_page_takes_a_number_or_a_list() -> None:
    def layers(said):
        state = {**START, "pp": 2, "vp": 1, "schedule": "1f1b", "recompute": "full", "recompute_layers": said}
        return read_case(state).strategy.recompute_layers

    assert layers(4) == 4
    assert layers("4,2") == (4, 2)


def test_values_in_a_formula_have_their_units(capsys) -> None:
    for name, line in (("peak_memory_bytes", "weights = "), ("step_time_s", "gemm = "), ("mfu", "step_time_s = ")):
        assert run(["estimate", *CASE, "--why", name]) == 0
        (value,) = [each for each in capsys.readouterr().out.splitlines() if each.strip().startswith(line)]
        assert value.split()[-1] == ("B" if name == "peak_memory_bytes" else "s")
