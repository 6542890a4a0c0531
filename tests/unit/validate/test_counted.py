"""The table of counts as a file, and its section of the report."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from simulator.catalog import names
from simulator.cli.validate import command
from simulator.errors import InputError
from simulator.validate.counted import counts_section, read_counts, write_counts

ROWS = [
    {"model": "a", "what": "parameters", "ours": 1200, "torch": 1200, "difference": 0, "note": "with, a comma"},
    {"model": "a", "what": "forward FLOPs", "ours": 7, "torch": 9, "difference": -2, "note": ""},
    {"model": "b", "what": "parameters", "ours": 10**13, "torch": 10**13, "difference": 0, "note": ""},
]


def test_counts_survive_the_file(tmp_path: Path) -> None:
    write_counts(ROWS, tmp_path)
    assert read_counts(tmp_path) == ROWS


def test_the_section_shows_every_model_and_what_differs(tmp_path: Path) -> None:
    write_counts(ROWS, tmp_path)
    text = counts_section(tmp_path)
    assert "2 of 3 counts of 2 models have difference 0" in text
    assert "| a | 1,200 | 9 | -2 forward FLOPs |" in text
    assert "| b | 10,000,000,000,000 |  | 0 |" in text


def test_no_file_is_no_section(tmp_path: Path) -> None:
    assert counts_section(tmp_path) == ""


def test_another_table_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "counts.csv").write_text("model,seconds\na,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"counts\.csv:1"):
        read_counts(tmp_path)
    (tmp_path / "counts.csv").write_text("model,what,ours,torch,difference,note\na,x,1,one,0,\n", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read as counts"):
        read_counts(tmp_path)


def test_the_committed_table_has_every_model_and_no_difference(root: Path) -> None:
    rows = read_counts(root / "validation")
    assert {row["model"] for row in rows} == set(names("models"))
    assert [row for row in rows if row["difference"]] == []
    assert len(rows) == 4 * len(names("models"))


def test_a_part_of_the_models_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="every model"):
        command.main(["--counts", "bert-base", "--out", str(tmp_path)], standalone_mode=False)
