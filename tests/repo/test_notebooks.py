"""Every lesson runs from top to bottom, and stands in the repository as it came out of a run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "tools"))

import run_notebooks  # noqa: E402


def _name(path: Path) -> str:
    return path.stem


@pytest.fixture(params=LESSONS, ids=_name)
def lesson(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_eight_lessons() -> None:
    assert [path.stem[:2] for path in LESSONS] == [f"{number:02d}" for number in range(1, 9)]


NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
ROUNDING = 2e-3
"""Four digits are printed: another machine's last bit may turn the last of them."""


def _said(notebook: Any) -> list[str]:
    """What each code cell prints; the text that stands for a picture included, the picture not."""
    texts = []
    for cell in _code(notebook):
        parts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell.outputs]
        texts.append("\n".join(parts))
    return texts


def _numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


@pytest.mark.loopback
@pytest.mark.filterwarnings("ignore")
def test_a_lesson_prints_today_what_is_stored(lesson: Path) -> None:
    fresh, stored = run_notebooks.executed(lesson), nbformat.read(lesson, as_version=4)
    assert [cell.execution_count for cell in _code(fresh)] == list(range(1, len(_code(fresh)) + 1))
    for cell, now, before in zip(_code(fresh), _said(fresh), _said(stored), strict=True):
        hint = f"`python tools/run_notebooks.py {lesson.stem}` stores today's outputs; read the text around them.\n"
        # Spaces follow the width of the numbers.
        words, stored_words = ("".join(NUMBER.sub("#", text).split()) for text in (now, before))
        assert words == stored_words, hint + cell.source
        assert _numbers(now) == pytest.approx(_numbers(before), rel=ROUNDING, abs=1e-12), hint + cell.source


def test_numbers_are_told_from_words() -> None:
    assert _numbers("GLaM 64B: 1,161,756 at -3.5e+02 (8.5 %)") == [64.0, 1161756.0, -350.0, 8.5]


def test_a_lesson_is_stored_with_its_outputs_in_order(lesson: Path) -> None:
    stored = nbformat.read(lesson, as_version=4)
    assert [cell.execution_count for cell in _code(stored)] == list(range(1, len(_code(stored)) + 1))
    outputs = [output for cell in _code(stored) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_a_lesson_opens_with_what_it_is_about_and_ends_with_checked_exercises(lesson: Path) -> None:
    stored = nbformat.read(lesson, as_version=4)
    first = stored.cells[0].source
    assert first.startswith(f"# {int(lesson.stem[:2])}. ")
    text = "\n".join(cell.source for cell in stored.cells)
    assert "**Notation" in text or "| symbol |" in text or lesson.stem.startswith("08")
    exercises = text.partition("## Exercises")[2]
    assert exercises.count("assert") >= 3


def test_what_a_run_stores_does_not_depend_on_when_it_ran() -> None:
    cell = nbformat.v4.new_code_cell("1", metadata={"execution": {"iopub.status.busy": "2020-01-01"}})
    language = {"name": "python", "version": "3.11.2"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"language_info": language})
    cleaned = run_notebooks.clean(notebook)
    assert cleaned.cells[0].metadata == {}
    assert cleaned.cells[0].id == "cell-00"
    assert "version" not in cleaned.metadata.language_info
