"""Bad inputs get an answer or an error that says where: every fourth of the corpus here, all by `make reliability`.

Time and memory are judged there too; here only what is said.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.bad_inputs import Case, Outcome, answer, corpus


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return corpus(tmp_path_factory.mktemp("bad"))


def test_the_corpus_is_as_large_as_promised(cases: list[Case]) -> None:
    assert len(cases) >= 2000
    assert len({case.arguments for case in cases}) >= 0.98 * len(cases)


def test_every_bad_input_is_answered_or_refused_with_its_place(cases: list[Case]) -> None:
    outcomes: list[Outcome] = [answer(case) for case in cases[::4]]
    bad = [f"{o.case.name}: {o.fault}: {o.said[-200:]}" for o in outcomes if o.fault]
    assert not bad, "\n".join(bad[:20])
    refused = sum(1 for o in outcomes if o.code == 2)
    assert refused > 0.8 * len(outcomes), "the corpus is no corpus of bad inputs any more"


def test_a_bad_answer_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("made up", ("estimate", "gpt2-124m", "dgx-a100", "--nodes", "1", "--global-batch", "8"), ("--tp",))
    assert answer(case).fault == ""

    def run_with(code: int, out: str, err: str) -> str:
        def run(_: list[str]) -> int:
            print(out)
            print(err, file=__import__("sys").stderr)
            return code

        monkeypatch.setattr("tools.bad_inputs.cli.run", run)
        return answer(case).fault

    assert "finite" in run_with(0, '{"step_time_s": NaN}', "")
    assert "exit code 3" in run_with(3, "", "internal error")
    assert "traceback" in run_with(2, "", "Traceback (most recent call last)")
    assert "without a word" in run_with(2, "", " ")
    assert "does not say where" in run_with(2, "", "something is wrong")
    assert run_with(2, "", "error: --tp: not a number") == ""


def test_files_from_strangers_are_never_joined_to_a_path(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    secret = tmp_path / "models" / "mine.toml"
    secret.write_text("title = 3\n", encoding="utf-8")
    for name in ("../models/mine", "models/mine", f"{tmp_path}/models/mine"):
        assert answer(Case(name, ("estimate", name, "dgx-a100", "--global-batch", "8"), ("TOML",))).fault == ""
