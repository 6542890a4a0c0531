"""The formats by name, how a file's own is recognised, and our own files as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any

from simulator.errors import InputError, Problem
from simulator.io import bridge, deepspeed, megatron, torchtitan
from simulator.io.imported import Imported
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

MODULES: Mapping[str, ModuleType] = {
    "megatron": megatron, "megatron-bridge": bridge, "torchtitan": torchtitan, "deepspeed": deepspeed,
}  # fmt: skip
FORMATS = ("hf", *MODULES)
"""What `import` reads: a model's config.json, and the settings of a framework."""


def dump_as(name: str, strategy: Strategy, run: Run, model: ModelSpec) -> str:
    """A strategy as a framework's own settings. Raises InputError with everything that they cannot say."""
    dump: Callable[[Strategy, Run, ModelSpec], str] = MODULES[name].dump
    return dump(strategy, run, model)


def load_as(name: str, text: str, *, path: str, devices: int, layers: int = 0) -> Imported:
    """A framework's settings as a strategy on a number of devices (0: where the file says it itself, DeepSpeed's)."""
    if name == "deepspeed":
        return deepspeed.load(text, path=path, devices=devices)
    if devices < 1:
        raise InputError([Problem("needs the number of devices: dp is what the other degrees leave.", "--devices")])
    load: Callable[..., Imported] = MODULES[name].load
    return load(text, path=path, devices=devices, layers=layers)


def recognise(text: str, path: str) -> str:
    """The format of a file by what stands in it. Raises InputError where nothing tells."""
    plain = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")).strip()
    if plain.startswith("{"):
        return "hf" if '"model_type"' in plain else "deepspeed"
    if re.search(r"^\s*--[a-z]", plain, re.MULTILINE):
        return "megatron"
    if re.search(r"^\s*\[[\w.]+\]\s*$", plain, re.MULTILINE):
        return "torchtitan"
    if re.search(r"^(cfg\.)?(model|train|ddp|dataset)(:|\.\w+ *=)", plain, re.MULTILINE):
        return "megatron-bridge"
    raise InputError([Problem("nothing tells its format.", path, f"Say --format: {', '.join(FORMATS)}.")])


def strategy_toml(strategy: Strategy) -> str:
    """A strategy file (`--strategy`): the fields that differ from their defaults, and dp."""
    said = {entry.name: getattr(strategy, entry.name) for entry in fields(strategy)}
    defaults = {entry.name: entry.default for entry in fields(strategy)}
    return settings_toml({name: value for name, value in said.items() if name == "dp" or value != defaults[name]})


def run_toml(run: Mapping[str, Any]) -> str:
    """A run file (`--run`) of the fields that an import found."""
    return settings_toml(run)


def settings_toml(table: Mapping[str, Any]) -> str:
    """A flat table of numbers, truths, words and lists as TOML."""
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in table.items())


def toml_value(value: Any) -> str:
    """One value as TOML writes it. Text is escaped; only the characters of TOML's basic strings stay."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(letter if letter.isprintable() else f"\\U{ord(letter):08X}" for letter in escaped) + '"'
