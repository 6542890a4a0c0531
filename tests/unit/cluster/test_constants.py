"""The calibration files: complete, physical, and as good on held-out rows as the project asks."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from simulator.cluster.constants import constants_from
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
