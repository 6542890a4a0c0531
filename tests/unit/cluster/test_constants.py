"""The calibration files: complete, physical, and as good on held-out rows as the project asks."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simulator.cluster import constants
from simulator.cluster.constants import NetworkConstants, Protocol, constants_from
from simulator.cluster.nccl import PROTOCOLS

FILES = sorted((Path(__file__).parents[3] / "hardware" / "calibration").glob("network-*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_calibration_file(path: Path) -> None:
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    constants = constants_from(document)
    assert path.stem == f"network-{constants.generation}"
    assert set(constants.protocols) == set(PROTOCOLS)
    # No regime moves more than the link, and each later one may start later but moves at least as fast.
    for family in (constants.protocols, constants.all_to_all, constants.send):
        fractions = [protocol.link_fraction for protocol in family.values()]
        assert fractions == sorted(fractions) or fractions[-1] == max(fractions)
        assert 0 < fractions[-1] <= 1
    for kind, found in document["residuals"].items():
        assert found["rows"] > 0
        if kind != "send":
            assert found["held_out_from_1mib"] <= 0.08, kind
            assert found.get("held_out_below_1mib", 0.0) <= 0.25, kind


def test_four_generations_are_fitted() -> None:
    assert [path.stem for path in FILES] == [
        "network-ampere",
        "network-blackwell",
        "network-hopper",
        "network-volta",
    ]


DOCUMENT: dict[str, Any] = {
    "generation": "own",
    "provenance": "made for this test",
    "protocols": {"ll": {"base_s": 2.0, "hop_s": 3.0, "rate_bytes_per_s": 5.0, "link_fraction": 0.7}},
    "all_to_all": {"simple": {"base_s": 11.0, "hop_s": 13.0, "link_fraction": 0.17}},
    "send": {"ll": {"base_s": 19.0, "hop_s": 23.0, "rate_bytes_per_s": 29.0, "link_fraction": 0.31}},
    "copy_bytes_per_s": {"all_gather": 37.0},
}


def test_constants_are_what_the_file_says() -> None:
    """A regime without a rate moves what the link moves; a generation without in-switch reduction uses no link."""
    found = constants_from({**DOCUMENT, "nvls": {"base_s": 41.0, "link_fraction": 0.43}})
    assert found == NetworkConstants(
        generation="own",
        provenance="made for this test",
        protocols={"ll": Protocol(base_s=2.0, hop_s=3.0, rate_bytes_per_s=5.0, link_fraction=0.7)},
        all_to_all={"simple": Protocol(base_s=11.0, hop_s=13.0, rate_bytes_per_s=math.inf, link_fraction=0.17)},
        send={"ll": Protocol(base_s=19.0, hop_s=23.0, rate_bytes_per_s=29.0, link_fraction=0.31)},
        copy_bytes_per_s={"all_gather": 37.0},
        nvls_base_s=41.0,
        nvls_link_fraction=0.43,
    )
    for without in (DOCUMENT, {**DOCUMENT, "nvls": {}}):
        assert constants_from(without) == replace(found, nvls_base_s=0.0, nvls_link_fraction=0.0)


@pytest.mark.parametrize(
    ("generation", "taken"),
    [("ampere", "ampere"), ("hopper", "hopper"), ("blackwell", "blackwell"), ("volta", "volta"), ("cpu", "ampere"),
     ("turing", "volta"), ("pascal", "volta"), ("ada", "ampere"), ("gaudi", "ampere"), ("tpu", "ampere")],
)  # fmt: skip
def test_a_generation_without_a_file_takes_a_neighbour_s(generation: str, taken: str) -> None:
    assert constants.network_constants(generation).generation == taken


def test_an_installed_package_reads_its_own_files_and_a_checkout_the_repository_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "__file__", str(tmp_path / "simulator" / "cluster" / "constants.py"))
    assert constants._folder() == tmp_path / "hardware" / "calibration"
    shipped = tmp_path / "simulator" / "_catalog" / "hardware" / "calibration"
    shipped.mkdir(parents=True)
    assert constants._folder() == shipped
