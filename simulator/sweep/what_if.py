"""Catalogue entries with fields replaced ("what if NVLink were twice as fast"), read by the same readers as files."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from simulator import catalog
from simulator.errors import InputError
from simulator.spec.cluster_fill import filled
from simulator.spec.framework_file import read_framework
from simulator.spec.hardware import Cluster, Device
from simulator.spec.hardware_file import read_cluster_file, read_device, read_kernels
from simulator.spec.kernels import KernelModel
from simulator.spec.model import ModelSpec
from simulator.spec.model_file import read_model
from simulator.spec.reading import Document
from simulator.spec.run import Framework

Changes = tuple[tuple[str, Any], ...]
"""Fields of one file and their new values: (("tiers.nvswitch.bandwidth", "x2"),). "x2" multiplies what the file has."""

_TIMES = re.compile(r"x ?([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)")
_NUMBER = re.compile(r"([0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)(.*)", re.DOTALL)


@lru_cache(maxsize=4096)
def model_with(name: str, changes: Changes) -> ModelSpec:
    """The model with fields of its file replaced. Raises InputError as the reader of model files does."""
    known = catalog.load_model(name)
    return read_model(_changed("models", name, known.name, changes)) if changes else known


@lru_cache(maxsize=4096)
def framework_with(name: str, changes: Changes) -> Framework:
    """The framework profile with fields of its file replaced."""
    known = catalog.load_framework(name)
    return read_framework(_changed("frameworks", name, known.name, changes)) if changes else known


@lru_cache(maxsize=4096)
def cluster_with(
    name: str, nodes: int | None, changes: Changes, device_changes: Changes, calibration_changes: Changes
) -> Cluster:
    """The cluster with fields of its own file, of its devices' files and of their calibrations replaced."""
    if not changes and not device_changes and not calibration_changes:
        return catalog.load_cluster(name, nodes=nodes)
    own = catalog.load_cluster(name).name
    file = read_cluster_file(_changed("clusters", name, own, changes))
    wanted = [group.device for group in file.node_groups] or [file.device or ""]
    devices = {each: _device_with(each, device_changes, calibration_changes) for each in wanted}
    return filled(file, own, devices, nodes=nodes)


def _device_with(name: str, changes: Changes, calibration_changes: Changes) -> Device:
    own = catalog.load_device(name).name
    document = _changed("devices", name, own, changes)
    for path, _ in changes:
        key = path.partition(".")[0]
        if key in document.table and isinstance(document.table.get("sources"), dict) and _cited(key):
            document.table["sources"][key] = "given in a sweep"
    generation = str(document.table.get("generation", ""))
    known = {generation, own} & set(catalog.names("calibration"))
    return read_device(document, {each: _kernels_with(each, own, known, calibration_changes) for each in known})


def _cited(key: str) -> bool:
    return key in {"memory", "memory_usable", "memory_bandwidth", "cache", "units", "tdp", "price", "vector", "peak"}


def _kernels_with(name: str, device: str, known: set[str], changes: Changes) -> KernelModel:
    """A calibration; the changes go to the device's own where it has one, else to its generation's."""
    target = device if device in known else name
    return read_kernels(_changed("calibration", name, name, changes if name == target else ()))


def _changed(kind: str, name: str, own: str, changes: Changes) -> Document:
    """The document of an entry with values replaced. Its places say which what-if is meant."""
    table = copy.deepcopy(dict(catalog.catalog_table(kind, name)))
    for path, value in changes:
        _set(table, path, value, f"{kind.removesuffix('s')} {own}")
    return Document(f"what-if/{own}.toml", table, {})


def _set(table: dict[str, Any], path: str, value: Any, what: str) -> None:
    """Set one field; a list of tables is entered by the name of an item or by its number."""
    at: Any = table
    *parents, last = path.split(".")
    for part in parents:
        at = _entered(at, part, path, what)
    if not isinstance(at, dict):
        raise InputError([f"{what}: {path}: {last} is no field of a {type(at).__name__}."])
    factor = _TIMES.fullmatch(value) if isinstance(value, str) else None
    if factor is None:
        at[last] = _thawed(value)
    elif last not in at:
        raise InputError([f"{what}: {path}: has no value to multiply by {factor.group(1)}."])
    else:
        at[last] = _multiplied(at[last], float(factor.group(1)), f"{what}: {path}")


def _entered(at: Any, part: str, path: str, what: str) -> Any:
    if isinstance(at, dict) and part in at:
        return at[part]
    if isinstance(at, list):
        by_name = [item for item in at if isinstance(item, dict) and item.get("name") == part]
        if by_name:
            return by_name[0]
        if part.isdigit() and int(part) < len(at):
            return at[int(part)]
        names = ", ".join(str(item.get("name", index)) for index, item in enumerate(at) if isinstance(item, dict))
        raise InputError([f"{what}: {path}: no {part} among {names}."])
    known = ", ".join(sorted(at)) if isinstance(at, dict) else "nothing"
    raise InputError([f"{what}: {path}: no {part} among {known}."])


def _multiplied(value: Any, factor: float, where: str) -> Any:
    """A number, or a quantity with its unit, times a factor."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError([f"{where}: {type(value).__name__} cannot be multiplied."])
    if isinstance(value, int) and float(value * factor).is_integer():
        return int(value * factor)
    if isinstance(value, int | float):
        return value * factor
    match = _NUMBER.fullmatch(value.strip())
    if match is None:
        raise InputError([f'{where}: "{value[:40]}" is no quantity and cannot be multiplied.'])
    return f"{float(match.group(1)) * factor!r}{match.group(2)}"


def changes_of(point: Mapping[str, Any], kind: str) -> Changes:
    """The fields that a point replaces in one kind of file."""
    prefix = f"{kind}."
    found = [(name.removeprefix(prefix), value) for name, value in point.items() if name.startswith(prefix)]
    return tuple((name, _frozen(value)) for name, value in found)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    return list(map(_thawed, value)) if isinstance(value, tuple) else value
