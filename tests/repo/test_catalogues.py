"""Every catalogue file loads, and cites where its numbers come from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

CATALOGUES = ("models", "hardware", "frameworks")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(file for kind in CATALOGUES for file in (ROOT / kind).rglob("*.toml"))


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in inside for text in _texts(item)]


def test_there_are_catalogues() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == set(CATALOGUES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_file_is_small_named_and_cited(file: Path) -> None:
    assert file.stat().st_size <= 256 * 1024
    assert NAME.fullmatch(file.stem)
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    cited = [key for key in ("source", "sources") if table.get(key)]
    assert cited, "no source or sources at the top level"
    texts = _texts([table[key] for key in cited])
    assert texts
    assert all(text.strip() for text in texts)


def test_a_name_is_used_once_in_its_catalogue() -> None:
    for kind in CATALOGUES:
        # A calibration has the name of its device.
        files = [file.relative_to(ROOT) for file in FILES if file.parent.name != "calibration"]
        stems = [file.stem for file in files if file.parts[0] == kind]
        assert len(stems) == len(set(stems)), sorted(stem for stem in stems if stems.count(stem) > 1)
