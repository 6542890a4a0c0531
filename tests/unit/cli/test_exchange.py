"""export and import as a user types them: what one writes the other reads, and other commands take it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from simulator.cli.app import app
from simulator.errors import InputError

CASE = ["llama3-8b", "dgx-a100", "--nodes", "4", "--global-batch", "64"]
FORMATS = {
    "megatron": ["--tp", "4", "--pp", "2", "--zero", "1", "--recompute", "selective"],
    "megatron-bridge": ["--tp", "8", "--cp", "2", "--zero", "1", "--recompute", "full"],
    "torchtitan": ["--framework", "torchtitan", "--pp", "4", "--vp", "2", "--schedule", "interleaved", "--zero", "2"],
    "deepspeed": ["--framework", "deepspeed", "--zero", "3", "--micro-batch", "2"],
}


def run(*words: str, text: str = "") -> Result:
    return CliRunner().invoke(app, list(words), input=text)


@pytest.mark.parametrize("form", FORMATS)
def test_an_imported_export_is_estimated_as_the_original(form: str, tmp_path: Path) -> None:
    written = run("export", form, *CASE, *FORMATS[form])
    assert written.exit_code == 0, written.stderr
    file = tmp_path / "settings"
    file.write_text(written.stdout, encoding="utf-8")
    read = run("import", str(file), "--devices", "32", "-o", str(tmp_path / "mine"))
    assert read.exit_code == 0, read.stderr
    files = ["--strategy", f"{tmp_path}/mine-strategy.toml", "--run", f"{tmp_path}/mine-run.toml"]
    once = json.loads(run("estimate", *CASE, *FORMATS[form], "--json").stdout)
    # A framework's file is read under the profile of that framework; the first estimate's is said again here.
    profile = FORMATS[form][1] if FORMATS[form][0] == "--framework" else "megatron-core"
    again = json.loads(run("estimate", *CASE[:4], *files, "--framework", profile, "--json").stdout)
    assert again["step_time_s"] == once["step_time_s"]
    assert again["peak_memory_bytes"] == once["peak_memory_bytes"]


def test_an_exported_model_is_counted_as_the_catalogues(tmp_path: Path) -> None:
    config = run("export", "hf", "mixtral-8x7b").stdout
    assert run("import", "-", "--out", str(tmp_path / "mine.toml"), text=config).exit_code == 0
    counts = [json.loads(run("count", model, "--json").stdout) for model in ("mixtral-8x7b", f"{tmp_path}/mine.toml")]
    assert counts[0]["parameters"] == counts[1]["parameters"]


def test_import_prints_our_files_or_one_document() -> None:
    flags = "--tensor-model-parallel-size 2 --global-batch-size 8 --lr 1"
    shown = run("import", "-", "--devices", "4", text=flags)
    assert "tp = 2\ndp = 2\n" in shown.stdout
    assert "global_batch = 8" in shown.stdout
    assert shown.stderr == "note: not read, taken as without effect on the cost: lr.\n"
    document = json.loads(run("import", "-", "--devices", "4", "--json", text=flags).stdout)
    assert document["format"] == "megatron"
    assert (document["strategy"]["tp"], document["run"]["global_batch"]) == (2, 8)
    assert document["notes"] == ["not read, taken as without effect on the cost: lr."]


def test_files_are_not_replaced_unasked(tmp_path: Path) -> None:
    config = run("export", "hf", "llama3-8b").stdout
    (tmp_path / "mine.toml").write_text("kept", encoding="utf-8")
    refused = run("import", "-", "-o", str(tmp_path / "mine"), text=config)
    assert isinstance(refused.exception, InputError)
    assert (tmp_path / "mine.toml").read_text(encoding="utf-8") == "kept"
    assert run("import", "-", "-o", str(tmp_path / "mine"), "--force", text=config).exit_code == 0
    assert "[attention]" in (tmp_path / "mine.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "text", "said"),
    [
        (["export", "hf", "palm-8b"], "", "palm-8b"),
        (["export", "torchtitan", *CASE, "--recompute", "selective"], "", "selective"),
        (["import", "-"], "--bf16", "--devices"),
        (["import", "-"], "nothing", "--format"),
        (["import", "-", "--format", "hf"], "{", "not valid JSON"),
        (["import", "/does/not/exist"], "", "no such file"),
    ],
)
def test_what_cannot_be_is_one_input_error(words: list[str], text: str, said: str) -> None:
    refused = run(*words, text=text)
    assert isinstance(refused.exception, InputError)
    assert said in str(refused.exception)
