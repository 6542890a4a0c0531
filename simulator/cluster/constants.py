"""The measured constants of a generation's collectives, read from hardware/calibration/network-*.toml.

`tools/fit_network.py` fits them to measured single-node NCCL tables; each file names its rows and residuals.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

INHERITS = {"cpu": "ampere", "turing": "volta", "pascal": "volta", "ada": "ampere"}
"""Generations without a file of their own that take a neighbour's; any other takes Ampere's latencies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One regime of a collective: `base_s` to start, `hop_s` a step, then bytes at a rate.

    The rate is the smaller of `rate_bytes_per_s` (what the kernel moves) and `link_fraction` of the link.
    """

    base_s: float
    hop_s: float
    rate_bytes_per_s: float
    link_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConstants:
    """What a generation's collectives cost beside the wire; see `cluster/nccl.py` for the formulas."""

    generation: str
    provenance: str
    protocols: Mapping[str, Protocol]
    """Ring regimes: ll, ll128, simple."""
    all_to_all: Mapping[str, Protocol]
    """ll, simple."""
    send: Mapping[str, Protocol]
    copy_bytes_per_s: Mapping[str, float]
    """Rate at which a rank's own share is copied to the output, by kind."""
    nvls_base_s: float
    nvls_link_fraction: float
    """Share of a device's link that in-switch reduction uses (0: the generation has none)."""


def _protocol(table: Mapping[str, float]) -> Protocol:
    return Protocol(
        base_s=table["base_s"],
        hop_s=table["hop_s"],
        rate_bytes_per_s=table.get("rate_bytes_per_s", float("inf")),
        link_fraction=table["link_fraction"],
    )


def constants_from(document: Mapping[str, Any]) -> NetworkConstants:
    """The constants in the parsed TOML of one generation."""
    families = {
        family: {name: _protocol(table) for name, table in document[family].items()}
        for family in ("protocols", "all_to_all", "send")
    }
    return NetworkConstants(
        generation=document["generation"],
        provenance=document["provenance"],
        copy_bytes_per_s=document["copy_bytes_per_s"],
        nvls_base_s=document.get("nvls", {}).get("base_s", 0.0),
        nvls_link_fraction=document.get("nvls", {}).get("link_fraction", 0.0),
        **families,
    )


def _folder() -> Path:
    package = Path(__file__).resolve().parents[1]
    shipped = package / "_catalog" / "hardware" / "calibration"
    return shipped if shipped.is_dir() else package.parent / "hardware" / "calibration"


@cache
def network_constants(generation: str) -> NetworkConstants:
    """The constants of `generation`, or those it inherits."""
    name = INHERITS.get(generation, generation)
    path = _folder() / f"network-{name}.toml"
    if not path.is_file():
        path = _folder() / "network-ampere.toml"
    return constants_from(tomllib.loads(path.read_text(encoding="utf-8")))
