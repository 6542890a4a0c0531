"""What a validation takes from the project: the catalogue, the estimator, the known residuals and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path

from simulator import catalog
from simulator.estimate import estimate
from simulator.intervals import Residual, read_residuals
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework
from simulator.validate.report import read_reasons

estimator = estimate
"""What `shardwise validate` scores."""


class CatalogFacts:
    """Reads the whole catalogue once and remembers clusters, since tables repeat them."""

    @cached_property
    def models(self) -> Mapping[str, ModelSpec]:
        return {name: catalog.load_model(name) for name in catalog.names("models")}

    @cached_property
    def frameworks(self) -> Mapping[str, Framework]:
        return {name: catalog.load_framework(name) for name in catalog.names("frameworks")}

    def cluster(
        self, device: str, devices: int, devices_per_node: int | None, nic_bytes_per_s: float | None,
        machine: str = "",
    ) -> Cluster:  # fmt: skip
        """The usual cluster of a device, or the machine named, from `catalog.cluster_for`.

        Raises InputError for an unknown device.
        """
        return _cluster(device, devices, devices_per_node, nic_bytes_per_s, machine=machine)


_cluster = lru_cache(maxsize=4096)(catalog.cluster_for)


def known_residuals() -> tuple[Residual, ...]:
    """Residuals of the last `make validate`; none where the project has not been validated yet."""
    path = _validation_file("residuals.csv")
    return read_residuals(path) if path.is_file() else ()


def known_reasons() -> dict[str, str]:
    """Reasons found for rows that are far off (`validation/reasons.toml`)."""
    path = _validation_file("reasons.toml")
    return read_reasons(path) if path.is_file() else {}


def _validation_file(name: str) -> Path:
    """A file of the validation/ folder: the wheel's copy, or the checkout's."""
    shipped = Path(str(files("simulator").joinpath("_catalog", "validation", name)))
    return shipped if shipped.is_file() else Path(__file__).parents[2] / "validation" / name
