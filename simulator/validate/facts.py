"""The catalogue as `configure` reads it: every model and framework profile, and clusters by device and counts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache

from simulator import catalog
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework


class CatalogueFacts:
    """Reads the whole catalogue once and remembers clusters, since tables repeat them."""

    @cached_property
    def models(self) -> Mapping[str, ModelSpec]:
        return {name: catalog.load_model(name) for name in catalog.names("models")}

    @cached_property
    def frameworks(self) -> Mapping[str, Framework]:
        return {name: catalog.load_framework(name) for name in catalog.names("frameworks")}

    def cluster(
        self, device: str, devices: int, devices_per_node: int | None, nic_bytes_per_s: float | None
    ) -> Cluster:
        """The usual cluster of a device, from `catalog.cluster_for`. Raises InputError for an unknown device."""
        return _cluster(device, devices, devices_per_node, nic_bytes_per_s)


_cluster = lru_cache(maxsize=4096)(catalog.cluster_for)
