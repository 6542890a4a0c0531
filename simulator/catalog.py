"""The catalogue: models, devices, clusters, frameworks and calibrations by name.

Names are looked up in an index of files, never joined to a path. The files are those shipped with the package
(`simulator/_catalog` in a wheel, the checkout otherwise), then those below each extra folder (`--catalog DIR` or the
environment variable SHARDWISE_CATALOG), where a later folder wins. The current folder is never read unasked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError, Problem, did_you_mean
from simulator.spec.hardware import Cluster, Device
from simulator.spec.kernels import KernelModel
from simulator.spec.reading import Document, read_document, read_text

if TYPE_CHECKING:
    from simulator.spec.hardware_file import ClusterFile
    from simulator.spec.model import ModelSpec
    from simulator.spec.run import Framework

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
FOLDERS = {
    "models": "models",
    "devices": "hardware/devices",
    "clusters": "hardware/clusters",
    "calibration": "hardware/calibration",
    "frameworks": "frameworks",
}
"""Kinds of entries and the folder of each, below a catalogue's root."""
ENVIRONMENT = "SHARDWISE_CATALOG"
MAX_FILES = 10_000

_ALIASES = re.compile(r"^aliases *= *\[([^\]]*)\]", re.MULTILINE)
_QUOTED = re.compile(r"[\"']([^\"']*)[\"']")

_extra: list[Path] = []


def add_catalog(folder: str | Path) -> None:
    """Also reads models/, hardware/ and frameworks/ below `folder`; its entries win over those of the same name.

    Raises InputError when it is not a folder or holds none of the three.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError([Problem(f"{path} is not a folder.", "--catalog")])
    if not any((path / place).is_dir() for place in FOLDERS.values()):
        wanted = ", ".join(FOLDERS.values())
        raise InputError([Problem(f"{path} holds none of the folders {wanted}.", "--catalog")])
    if path.resolve() not in _extra:
        _extra.append(path.resolve())


def extra_folders() -> tuple[Path, ...]:
    """Folders read besides the package's own, in the order in which they win."""
    return _roots()


def names(kind: str) -> tuple[str, ...]:
    """All names of a kind: models, devices, clusters, frameworks or calibration, in alphabetical order."""
    _check_kind(kind)
    return tuple(sorted(_index(_roots())[kind]))


def load_model(name_or_path: str) -> ModelSpec:
    """The model of that name or alias, or of the TOML file at that path (text with a slash, or ending in .toml)."""
    if is_path(name_or_path):
        return _model_of(_document("models", name_or_path))
    return _model(name_or_path, _roots())


def load_device(name_or_path: str) -> Device:
    """The device of that name or alias, or of the TOML file at that path, with its kernel constants attached."""
    if is_path(name_or_path):
        from simulator.spec.machine_file import is_machine, read_machine

        document = _document("devices", name_or_path)
        return read_machine(document).device if is_machine(document) else _device_of(document)
    return _device(name_or_path, _roots())


def load_cluster(name_or_path: str, nodes: int | None = None) -> Cluster:
    """The cluster of that name or alias, or of the TOML file at that path, with `nodes` nodes (default: its own).

    Raises InputError for an unknown name (with the nearest), a bad file, or a number of nodes that it cannot have.
    """
    from simulator.spec.cluster_fill import filled
    from simulator.spec.machine_file import is_machine, read_machine

    document = _document("clusters", name_or_path)
    if is_machine(document):
        return read_machine(document, nodes=nodes)
    file = _cluster_file(document.path, _roots()) if not is_path(name_or_path) else _cluster_of(document)
    return filled(file, Path(document.path).stem, _devices_of(file), nodes=nodes)


def load_framework(name_or_path: str) -> Framework:
    """The framework profile of that name, or of the TOML file at that path."""
    if is_path(name_or_path):
        return _framework_of(_document("frameworks", name_or_path))
    return _framework(name_or_path, _roots())


def catalog_table(kind: str, name: str) -> Mapping[str, Any]:
    """The raw table of a catalogue entry, for readers of their own formats (calibrations)."""
    return _document(kind, name).table


def entry(name: str) -> tuple[Mapping[str, Any], str]:
    """The table and the text of the model, device, cluster or framework of that name or alias, in that order.

    Raises InputError for an unknown name, with the nearest of all kinds.
    """
    kinds = [kind for kind in FOLDERS if kind != "calibration"]
    extra = _roots()
    for known in (_index, _aliases_by_kind):
        for kind in kinds:
            if name in known(extra)[kind]:
                document = _cached_document(kind, name, extra)
                file, path = _index(extra)[kind][Path(document.path).stem]
                return document.table, read_text(file, path)
    hint = did_you_mean(name, [known for kind in kinds for known in (*_index(extra)[kind], *_aliases(kind, extra))])
    raise InputError([Problem(f"nothing in the catalogue is called {_ascii(name)}.", "", hint)])


def cluster_for(
    device_name: str, devices: int, devices_per_node: int | None = None, nic_bytes_per_s: float | None = None,
    *, machine: str = "",
) -> Cluster:  # fmt: skip
    """The cluster of a published run that says its device and counts: the catalogue's usual node of that device.

    `nic_bytes_per_s` is the network's rate per device and direction; None takes the catalogue's. Rack-scale and torus
    systems keep their own node. `machine` names the catalogue's cluster where it is known on which the run was made:
    its network is then as its file says, and not as is usual of its kind. `sources["assumed"]` of the answer states
    what was taken. Raises InputError for an unknown device, a device without a usual node, and counts below 1.
    """
    from simulator.spec.cluster_fill import NETWORK_KINDS, filled

    if devices < 1 or (devices_per_node is not None and devices_per_node < 1):
        raise InputError([f"devices({devices}) and devices_per_node({devices_per_node}) must be at least 1."])
    device = load_device(device_name)
    usual = machine or _usual_cluster(device_name, devices, devices_per_node)
    file = _cluster_file(_document("clusters", usual).path, _roots())
    per_node, said = _per_node(file, devices, devices_per_node)
    cluster = filled(
        file,
        usual,
        {**_devices_of(file), file.device or "": device},
        nodes=devices // per_node,
        devices_per_node=per_node,
        nic_bytes_per_s=None if machine else nic_bytes_per_s,
    )
    if machine:
        return replace(cluster, sources={**cluster.sources, "assumed": f"{machine}, on which the source ran"})
    cluster = replace(cluster, tiers=tuple(replace(tier, usable_fraction=0.0) for tier in cluster.tiers))
    said.insert(0, f"nodes and fabric of {usual}")
    if nic_bytes_per_s is None and any(tier.kind in NETWORK_KINDS for tier in cluster.tiers):
        said.append("the bandwidth of its network")
    return replace(cluster, sources={**cluster.sources, "assumed": "; ".join(said)})


def _usual_cluster(device_name: str, devices: int, devices_per_node: int | None) -> str:
    """The cluster that the device's file names: by node size where a run has several nodes of that size."""
    table = _document("devices", device_name).table
    several = devices_per_node is not None and devices > devices_per_node
    by_size = table.get("cluster_of_node_size", {}).get(str(devices_per_node)) if several else None
    usual = by_size or table.get("cluster")
    if not usual:
        raise InputError([f"the catalogue names no usual node for {device_name}: name a cluster."])
    return str(usual)


def is_path(name_or_path: str) -> bool:
    """Whether the text is a path to a file: it has a slash or ends in .toml or .json."""
    return "/" in name_or_path or os.sep in name_or_path or name_or_path.endswith((".toml", ".json"))


def _per_node(file: ClusterFile, devices: int, asked: int | None) -> tuple[int, list[str]]:
    own = file.devices_per_node
    rack_scale = (file.tiers[0].size or devices) > own
    if asked is None or asked == own:
        wanted, said = own, []
    elif rack_scale:
        wanted, said = own, [f"{own} devices per node ({asked} given: its scale-up domain joins many nodes)"]
    else:
        wanted, said = asked, []
    wanted = min(wanted, devices)
    whole = max(size for size in range(1, wanted + 1) if devices % size == 0)
    if whole != wanted:
        said.append(f"{whole} devices per node, as {wanted} does not divide {devices}")
    return whole, said


def _check_kind(kind: str) -> None:
    if kind not in FOLDERS:
        raise InputError([f"{kind} is no kind of catalogue entry. {did_you_mean(kind, FOLDERS)}"])


def _roots() -> tuple[Path, ...]:
    """Extra catalogue folders, in the order in which they win."""
    text = os.environ.get(ENVIRONMENT, "")
    named = tuple(Path(part).resolve() for part in text.split(os.pathsep) if part)
    missing = [part for part in named if not part.is_dir()]
    if missing:
        raise InputError([Problem(f"{part} is not a folder.", ENVIRONMENT) for part in missing])
    return (*named, *_extra)


@lru_cache(maxsize=8)
def _index(extra: tuple[Path, ...]) -> dict[str, dict[str, tuple[Traversable, str]]]:
    """For each kind: name -> (file, how it is shown)."""
    index: dict[str, dict[str, tuple[Traversable, str]]] = {kind: {} for kind in FOLDERS}
    own = files("simulator").joinpath("_catalog")
    roots: list[tuple[Traversable, str]] = [(own if own.is_dir() else Path(__file__).parents[1], "")]
    roots += [(path, f"{path}/") for path in extra]
    for root, prefix in roots:
        for kind, place in FOLDERS.items():
            folder = root.joinpath(*place.split("/"))
            if folder.is_dir():
                index[kind].update(_entries(folder, f"{prefix}{place}", root))
    return index


def _entries(folder: Traversable, shown: str, root: Traversable) -> dict[str, tuple[Traversable, str]]:
    found: dict[str, tuple[Traversable, str]] = {}
    problems = []
    for file, path in _toml_files(folder, shown, root):
        name = file.name.removesuffix(".toml")
        if not NAME.fullmatch(name):
            problems.append(Problem("the name of a catalogue file is [a-z0-9][a-z0-9._-]{0,63}.toml.", path))
        elif name in found:
            problems.append(Problem(f"the name {name} is taken already by {found[name][1]}.", path))
        found[name] = (file, path)
    if problems:
        raise InputError(problems)
    return found


def _toml_files(folder: Traversable, shown: str, root: Traversable) -> Iterator[tuple[Traversable, str]]:
    """TOML files below a folder, by name; links that leave the catalogue are refused."""
    count = 0
    pending = [(folder, shown)]
    while pending:
        at, place = pending.pop()
        for item in sorted(at.iterdir(), key=lambda entry: entry.name):
            path = f"{place}/{item.name}"
            if isinstance(item, Path) and item.is_symlink() and not _inside(item, root):
                raise InputError([Problem("is a link that leaves the catalogue.", path)])
            count += 1
            if count > MAX_FILES:
                raise InputError([Problem(f"more than {MAX_FILES:,} files.", shown)])
            if item.name.endswith(".toml"):
                yield item, path
            elif item.is_dir():
                pending.append((item, path))


def _inside(link: Path, root: Traversable) -> bool:
    return isinstance(root, Path) and link.resolve().is_relative_to(root.resolve())


def _document(kind: str, name_or_path: str) -> Document:
    """The parsed file of an entry. Raises InputError for an unknown name (with the nearest) and a bad file."""
    _check_kind(kind)
    if is_path(name_or_path):
        if not name_or_path.endswith(".toml"):
            raise InputError([Problem("only TOML files are read here.", name_or_path[:200])])
        return read_document(Path(name_or_path))
    return _cached_document(kind, name_or_path, _roots())


@lru_cache(maxsize=512)
def _cached_document(kind: str, name: str, extra: tuple[Path, ...]) -> Document:
    index = _index(extra)[kind]
    if name in index:
        return read_document(*index[name])
    one = kind.removesuffix("s")
    if not NAME.fullmatch(name):
        shown = _ascii(name)
        hint = did_you_mean(name.lower().replace(" ", "-")[:64], index)
        raise InputError([Problem(f"{shown!r} is no {one} name: those are [a-z0-9][a-z0-9._-]{{0,63}}.", "", hint)])
    aliases = _aliases(kind, extra) if kind in ("models", "devices", "clusters") else {}
    if name in aliases:
        return read_document(*index[aliases[name]])
    hint = did_you_mean(name, [*index, *aliases]) or f"`shardwise catalog list {kind}` lists them."
    raise InputError([Problem(f"no {one} is called {name}.", "", hint)])


def _ascii(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()[:64]


def _aliases_by_kind(extra: tuple[Path, ...]) -> dict[str, dict[str, str]]:
    return {kind: _aliases(kind, extra) for kind in FOLDERS}


@lru_cache(maxsize=16)
def _aliases(kind: str, extra: tuple[Path, ...]) -> dict[str, str]:
    """Alias -> name. Raises InputError where an alias is a name or belongs to two files."""
    index = _index(extra)[kind]
    found: dict[str, str] = {}
    problems = []
    for name, (file, path) in index.items():
        for alias in _listed_aliases(read_text(file, path)):
            if alias in index or alias in found:
                owner = found.get(alias, alias)
                problems.append(Problem(f"the alias {alias} is taken already by {owner}.", path))
            found[alias] = name
    if problems:
        raise InputError(problems)
    return found


def _listed_aliases(text: str) -> tuple[str, ...]:
    """The `aliases` key of a file, without parsing the rest: a lookup by alias reads every file of a kind."""
    line = _ALIASES.search(text)
    return tuple(_QUOTED.findall(line.group(1))) if line else ()


def _model_of(document: Document) -> ModelSpec:
    from simulator.spec.model_file import read_model

    return read_model(document)


@lru_cache(maxsize=512)
def _model(name: str, extra: tuple[Path, ...]) -> ModelSpec:
    return _model_of(_cached_document("models", name, extra))


def _device_of(document: Document) -> Device:
    from simulator.spec.hardware_file import read_device

    extra = _roots()
    wanted = {document.table.get("generation"), Path(document.path).stem} & set(_index(extra)["calibration"])
    return read_device(document, {name: _kernels(name, extra) for name in wanted if isinstance(name, str)})


@lru_cache(maxsize=32)
def _kernels(name: str, extra: tuple[Path, ...]) -> KernelModel:
    from simulator.spec.hardware_file import read_kernels

    return read_kernels(_cached_document("calibration", name, extra))


@lru_cache(maxsize=256)
def _device(name: str, extra: tuple[Path, ...]) -> Device:
    return _device_of(_cached_document("devices", name, extra))


def _framework_of(document: Document) -> Framework:
    from simulator.spec.framework_file import read_framework

    return read_framework(document)


@lru_cache(maxsize=128)
def _framework(name: str, extra: tuple[Path, ...]) -> Framework:
    return _framework_of(_cached_document("frameworks", name, extra))


def _cluster_of(document: Document) -> ClusterFile:
    from simulator.spec.hardware_file import read_cluster_file

    return read_cluster_file(document)


@lru_cache(maxsize=256)
def _cluster_file(path: str, extra: tuple[Path, ...]) -> ClusterFile:
    return _cluster_of(_cached_document("clusters", Path(path).stem, extra))


def _devices_of(file: ClusterFile) -> dict[str, Device]:
    wanted = [group.device for group in file.node_groups] or [file.device or ""]
    return {name: load_device(name) for name in wanted}
