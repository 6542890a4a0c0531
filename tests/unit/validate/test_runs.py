"""The strict run table: good rows become typed rows, every fault is named with its line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.validate.runs import COLUMNS, PublishedRun, flags, read_runs

GOOD = {
    "run_id": "r1", "family": "f", "source": "s", "system": "Megatron-LM", "train_kind": "pretrain", "model": "GPT",
    "arch": "decoder", "layers": "24", "hidden": "2048", "heads": "16", "gated": "0", "vocab": "50257",
    "seq_len": "2048", "device": "a100-sxm-80gb", "devices": "16", "tp": "2", "pp": "2", "dp": "4",
    "micro_batch": "1", "global_batch": "64", "nic_gbps_per_device": "200", "step_time_s": "1.5",
    "peak_memory_gib": "40", "outcome": "ok", "grade": "A", "consistent": "True",
}  # fmt: skip


def write(path: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def problems(*paths: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_runs(paths)
    return [str(problem) for problem in caught.value.problems]


def test_a_good_row_is_typed_and_in_si_units(tmp_path: Path) -> None:
    (run,) = read_runs([write(tmp_path / "runs.csv", GOOD)])
    assert (run.layers, run.gated, run.kv_heads, run.consistent) == (24, False, None, True)
    assert run.nic_bytes_per_s == 25e9
    assert run.peak_memory_bytes == 40 * 1024**3
    assert run.where.endswith("runs.csv:2")
    assert run.notes == ""


def test_columns_may_stand_in_any_order_and_quoted_cells_may_span_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.csv", GOOD | {"notes": "two\nlines"}, GOOD | {"run_id": "r2"}, columns=COLUMNS[::-1])
    assert [run.where.rsplit(":", 1)[1] for run in read_runs([path])] == ["2", "4"]


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("layers", "x", "layers = 'x' is not a number"),
        ("layers", "0", "must be a whole number from 1"),
        ("layers", "-3", "must be a whole number from 1"),
        ("layers", "2.5", "is not a number"),
        ("layers", "1" * 30, "must be a whole number"),
        ("zero", "4", "must be 0, 1, 2 or 3"),
        ("gated", "yes", "must be 0 or 1"),
        ("consistent", "true", "must be True or False"),
        ("step_time_s", "nan", "must be a positive number"),
        ("step_time_s", "inf", "must be a positive number"),
        ("step_time_s", "0", "must be a positive number"),
        ("precision", "bf17", "Did you mean bf16?"),
        ("schedule", "1f1", "Did you mean 1f1b?"),
        ("arch", "decodr", "Did you mean decoder?"),
        ("attention", "flash", "is not known"),
        ("outcome", "", "outcome is empty"),
        ("run_id", "", "run_id is empty"),
    ],
)
def test_a_bad_cell_is_named_with_its_line(tmp_path: Path, column: str, cell: str, words: str) -> None:
    (problem,) = problems(write(tmp_path / "runs.csv", GOOD, GOOD | {"run_id": "r2", column: cell}))
    assert words in problem
    assert "runs.csv:3" in problem


def test_every_fault_of_every_file_is_reported_at_once(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", GOOD | {"layers": "x", "zero": "9"}, GOOD | {"run_id": "r2", "tp": "no"})
    second = write(tmp_path / "b.csv", GOOD | {"run_id": "r3", "heads": "h"})
    found = problems(first, second, tmp_path / "none.csv")
    assert len(found) == 5
    assert [p.split(":")[1] for p in found[:4]] == ["2", "2", "3", "2"]
    assert "cannot be read" in found[4]


def test_unknown_missing_and_doubled_columns(tmp_path: Path) -> None:
    columns = (*("layer" if name == "layers" else name for name in COLUMNS), "tp")
    found = problems(write(tmp_path / "runs.csv", GOOD, columns=columns))
    assert any("unknown column 'layer'. Did you mean layers?" in p for p in found)
    assert any("column 'tp' appears 2 times" in p for p in found)
    assert any("missing column layers" in p for p in found)


def test_a_run_id_is_used_once(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path / "runs.csv", GOOD, GOOD))
    assert "run_id 'r1' was already used at" in problem


def test_ragged_rows_empty_files_and_other_bytes(tmp_path: Path) -> None:
    ragged = tmp_path / "ragged.csv"
    ragged.write_text(",".join(COLUMNS) + "\na,b\n")
    assert "2 cells, but the header names" in problems(ragged)[0]
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    assert "the file is empty" in problems(empty)[0]
    latin = tmp_path / "latin.csv"
    latin.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in problems(latin)[0]


def row(tmp_path: Path, **cells: str) -> PublishedRun:
    return read_runs([write(tmp_path / "runs.csv", GOOD | cells)])[0]


def test_degrees_that_do_not_give_the_devices_are_flagged(tmp_path: Path) -> None:
    assert flags(row(tmp_path)) == ()
    assert flags(row(tmp_path, dp="8")) == ("tp(2) * cp(1) * pp(2) * dp(8) = 32, not devices(16)",)


def test_dp_that_counts_replicas_of_experts_is_no_contradiction(tmp_path: Path) -> None:
    assert flags(row(tmp_path, dp="1", ep="4", experts="8", topk="2")) == ()


def test_stated_rates_must_agree_with_the_step_time(tmp_path: Path) -> None:
    ours = 64 / 1.5 / 16
    assert flags(row(tmp_path, notes=f"source states {ours:.2f} samples/GPU/s")) == ()
    assert "samples/GPU/s" in flags(row(tmp_path, notes=f"source states {1.1 * ours:.2f} samples/GPU/s"))[0]
