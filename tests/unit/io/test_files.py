"""A file is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.io.files import replaced, write_bytes


def test_the_content_is_there_with_ordinary_permissions(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"abc")
    (tmp_path / "other").touch()
    assert (tmp_path / "x").read_bytes() == b"abc"
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("before")

    def write_half() -> None:
        with replaced(tmp_path / "x", force=True) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "before"


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"1")
    with pytest.raises(InputError, match=r"exists already\. --force replaces it"):
        write_bytes(tmp_path / "x", b"2")
    write_bytes(tmp_path / "x", b"2", force=True)
    assert (tmp_path / "x").read_bytes() == b"2"


def test_a_dangling_link_exists(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="exists already"):
        write_bytes(tmp_path / "x", b"1")
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_folder_and_a_folder_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        write_bytes(tmp_path / "no" / "x", b"1")
    with pytest.raises(InputError, match="is a folder"):
        write_bytes(tmp_path, b"1", force=True)
