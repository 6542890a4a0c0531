"""Errors of predicted collective times against measured tables (nccl, collectives)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.catalog import cluster_for
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import single_node_group
from simulator.errors import InputError, Problem, did_you_mean
from simulator.spec.hardware import Cluster
from simulator.validate.kernel_devices import measured_device

COLLECTIVE_KINDS: Mapping[str, frozenset[str]] = {
    "nccl": frozenset({"device", "collective", "devices", "bytes", "latency_ms"}),
    "collectives": frozenset(
        {"device", "devices", "devices_per_node", "op", "size_bytes", "size_definition", "time_us"}
    ),
}
_KINDS = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all", "all_to_all": "all_to_all", "broadcast": "broadcast", "send_recv": "send",
}  # fmt: skip


def collective_rows(table: str, rows: Any, min_bytes: float) -> Iterator[tuple[str, str, NDArray[np.float64]]]:
    """(device, kind, signed relative errors) of a table, grouped; rows without a device are left out."""
    held = _nccl(rows) if table == "nccl" else _profiles(rows)
    unknown = sorted(set(held["op"]) - set(_KINDS))
    if unknown:
        hint = did_you_mean(str(unknown[0]), _KINDS)
        raise InputError([Problem(f"collective {', '.join(map(str, unknown))} is not modelled.", hint=hint)])
    held = held.assign(kind=held["op"].map(_KINDS))
    for (device, kind), group in held.groupby(["device", "kind"], sort=True):
        large = group[group["buffer_bytes"] >= min_bytes]
        errors = [_errors(str(device), str(kind), *shape, part) for shape, part in _by_shape(large)]
        yield str(device), f"{table} {kind}", np.concatenate([np.empty(0), *errors])


def _nccl(rows: Any) -> Any:
    """One node: as many devices per node as the table's largest group of the device."""
    per_node = rows.groupby("device")["devices"].transform("max")
    return rows.assign(
        op=rows["collective"], devices_per_node=per_node, buffer_bytes=rows["bytes"], seconds=rows["latency_ms"] * 1e-3
    )


def _profiles(rows: Any) -> Any:
    """Sizes as the full buffer: an all-gather measured by its per-rank tensor ends with all of them."""
    held = rows[rows["device"].notna()]
    gathers = held["op"].isin(["all_gather", "reduce_scatter"]) & (held["size_definition"] == "per-rank tensor")
    full = held["size_bytes"] * np.where(gathers, held["devices"], 1)
    return held.assign(buffer_bytes=full, seconds=held["time_us"] * 1e-6)


def _by_shape(rows: Any) -> Iterator[tuple[tuple[int, int], Any]]:
    for (devices, per_node), part in rows.groupby(["devices", "devices_per_node"], sort=True):
        yield (int(devices), int(per_node)), part


def _errors(device: str, kind: str, devices: int, per_node: int, rows: Any) -> NDArray[np.float64]:
    cluster = _cluster(device, devices, per_node)
    size = rows["buffer_bytes"].to_numpy(dtype=np.float64)
    predicted = collective_time_s(cluster, kind, size, single_node_group(devices))
    return np.asarray(predicted / rows["seconds"].to_numpy(dtype=np.float64) - 1.0, dtype=np.float64)


def _cluster(device: str, devices: int, per_node: int) -> Cluster:
    """The device's usual node, one or as many as the group spans."""
    nodes = -(-devices // per_node)
    return cluster_for(measured_device(device).name, nodes * per_node, per_node)
