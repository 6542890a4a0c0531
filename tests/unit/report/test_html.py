"""The one-file report: complete, escaped, and alone in the world."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

import simulator as sim
from simulator.cli import run
from simulator.explain import FORMULAS, terms
from simulator.report.document import command_line, document, value_text
from simulator.report.html import report_html
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from tests.support import a100, dgx, gpt, mixture

HOSTILE = "<script>alert('x')</script>\"&'"


def page(model: ModelSpec, cluster: Cluster, strategy: sim.Strategy, batch: int = 16) -> tuple[sim.Estimate, str]:
    answer = sim.estimate(model, cluster, sim.Run(global_batch=batch), strategy)
    return answer, report_html(answer, model=model, cluster=cluster, strategy=strategy, said=("dp = 2: said.",))


class Reader(HTMLParser):
    """Tags, attributes and text; complains about tags that do not close."""

    VOID = ("meta", "br", "rect", "line", "path", "circle", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "br", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


def test_it_asks_no_other_machine_for_anything() -> None:
    _, text = page(gpt(1024, 8, 16), dgx(2), sim.Strategy(tp=2, pp=4, dp=2))
    found = read(text)
    assert not {"script", "link", "img", "iframe", "object", "image", "use", "base", "form"} & set(found.tags)
    assert not {"src", "href", "xlink:href", "style", "srcset"} & {name for name, _ in found.attributes}
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_every_number_stands_there_with_formula_and_source() -> None:
    answer, text = page(mixture(), dgx(2), sim.Strategy(tp=2, pp=2, dp=4, ep=4, zero=1))
    words = read(text).text
    for name in terms(answer):
        assert f"{name} = " in words
        assert FORMULAS[name][0] in words
        assert FORMULAS[name][1] in words
    for entry in answer.provenance:
        assert f"{entry.what} ({entry.kind})" in words
        assert entry.source in words
    for note in ("dp = 2: said.", *answer.notes):
        assert note in words


def test_the_four_pictures_are_there_with_words_for_who_cannot_see_them() -> None:
    answer, text = page(gpt(1024, 8, 16), dgx(2), sim.Strategy(tp=2, pp=4, dp=2))
    labels = [value or "" for name, value in read(text).attributes if name == "aria-label"]
    assert [label.split()[0] for label in labels] == ["Step", "Memory:", "Timeline", "Topology"]
    assert document(answer)["headline"][0]["value"] in labels[0]


def test_hostile_words_stay_words() -> None:
    device = replace(a100(), title=HOSTILE, name=HOSTILE, sources={"x": HOSTILE})
    cluster = replace(dgx(2, device), name=HOSTILE, title=HOSTILE, sources={"y": HOSTILE})
    cluster = replace(cluster, tiers=tuple(replace(tier, name=f"{HOSTILE}{tier.name}") for tier in cluster.tiers))
    model = replace(gpt(1024, 8, 16), name=HOSTILE, title=HOSTILE, sources={"z": HOSTILE})
    _, text = page(model, cluster, sim.Strategy(tp=2, pp=4, dp=2))
    found = read(text)
    assert "script" not in found.tags
    assert "<script" not in text.lower()
    assert found.text.count(HOSTILE) > 5


def test_what_does_not_fit_says_by_how_much() -> None:
    answer, text = page(gpt(8192, 32, 64), dgx(2), sim.Strategy(tp=1, pp=1, dp=16))
    assert not answer.fits
    lacking = answer.peak_memory_bytes - answer.device_memory_bytes
    assert f"Does not fit: the fullest device lacks {value_text(lacking, 'B')}" in unescape(text)
    assert "class=over-limit" in text


def test_rows_sum_to_what_the_headline_says() -> None:
    answer, _ = page(gpt(1024, 8, 16), dgx(2), sim.Strategy(tp=2, pp=4, dp=2))
    view = document(answer)
    for rows in (view["time"], view["memory"], view["traffic"]):
        assert sum(float(row["share"].split()[0]) for row in rows) == pytest.approx(100.0, abs=0.3)


def test_the_command_repeats_the_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    import json
    import shlex

    strategy = sim.Strategy(tp=2, pp=2, dp=4, zero=1, recompute="modules", recompute_modules=("core_attn", "mlp"),
                            sequence_parallel=False, layers_per_stage=(15, 17))  # fmt: skip
    model, cluster = sim.load_model("gpt3-6.7b"), sim.load_cluster("dgx-a100", nodes=2)
    answer = sim.estimate(model, cluster, sim.Run(global_batch=32, precision="fp16"), strategy)
    words = shlex.split(command_line(answer, 2))
    assert words[0] == "shardwise"
    assert run([*words[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step_time_s"] == answer.step_time_s


def test_a_command_cannot_be_made_of_a_name() -> None:
    answer, _ = page(replace(gpt(1024, 8, 16), name="x; rm -rf $HOME"), dgx(2), sim.Strategy(tp=2, pp=4, dp=2))
    assert "'x; rm -rf $HOME'" in command_line(answer, 2)


def test_the_report_command_writes_the_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.html"
    words = ["report", "gpt3-6.7b", "dgx-a100", "--nodes", "2", "--tp", "2", "--global-batch", "32", "-o", str(file)]
    assert run(words) == 0
    text = file.read_text(encoding="utf-8")
    assert re.search(r"<title>gpt3-6.7b on 16 devices of dgx-a100</title>", text)
    assert run(words) == 2
    assert "--force" in capsys.readouterr().err
    assert run([*words, "--force"]) == 0
    assert file.read_text(encoding="utf-8") == text
