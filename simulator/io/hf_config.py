"""One config.json as it is read: its settings, its family's defaults, and what was taken from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from simulator.errors import InputError, Problem, did_you_mean
from simulator.io.hf_families import ALIASES, FAMILIES, NESTED, REQUIRED, Family
from simulator.io.said import Said

MAX_LAYERS = 10_000
"""Layers are written out one by one; model files have the same limit."""


@dataclass(frozen=True, slots=True)
class Config:
    """One config.json: its settings, the family's defaults, and what was taken from them."""

    said: Said
    family: Family
    taken: dict[str, Any] = field(default_factory=dict)

    def value(self, key: str) -> Any:
        """The file's value of a key, else transformers' default, which is then noted."""
        if key in self.said.entries:
            return self.said.get(key)
        self.said.get(key)
        default = self.family.defaults.get(key)
        if default is not None:
            self.taken[key] = default
        return default

    def count(self, key: str, default: int = 0, *, low: int = 1) -> int:
        """A whole number of the file, else transformers' default, else `default`."""
        if key in self.said.entries:
            return self.said.count(key, default, low=low)
        found = self.value(key)
        return default if found is None else int(found)

    def listed(self, key: str) -> list[Any] | None:
        """A list of the file; None where it is not said, or null."""
        found = self.said.get(key)
        if found is None or isinstance(found, list):
            return found
        self.said.bad(key, "needs a list.")
        return None

    def truth(self, key: bool | str) -> bool:
        """A structural fact, or what the key that carries it says."""
        if isinstance(key, bool):
            return key
        return self.said.truth(key, bool(self.value(key)))

    def size(self, path: str) -> int:
        """A size by our name of it; one that no file may leave out is a problem when missing."""
        key = self.family.keys[path]
        if path == "dims.layers" and self.count(key, 1) > MAX_LAYERS:
            self.said.bad(key, f"more than {MAX_LAYERS:,} layers.")
            return 1
        if path in REQUIRED and self.said.get(key) is None and key not in self.family.defaults:
            self.said.broken.add(f"{key} is missing: without it the file describes no model.")
            return 1
        return self.count(key, 1)


def config_of(said: Said) -> Config:
    """The settings of the text model, and its family. Raises InputError for a `model_type` that is not modelled."""
    kind = said.get("model_type")
    if kind in NESTED:
        said = _nested(said)
        kind = NESTED[str(kind)]
    kind = ALIASES.get(str(kind), kind)
    if kind not in FAMILIES:
        known = [*FAMILIES, *NESTED, *ALIASES]
        hint = did_you_mean(str(kind), known)
        listed = hint if hint.startswith("Did") else f"Choose from: {', '.join(sorted(known))}."
        message = f"model_type: {str(kind)[:60]!a} is not modelled."
        raise InputError([Problem(message, said.where("model_type"), listed)])
    return Config(said, FAMILIES[str(kind)])


def _nested(said: Said) -> Said:
    """The text part of a model of text and pictures; its vision part is left, as in our own model files."""
    part = "text_config."
    inner = {key.removeprefix(part): entry for key, entry in said.entries.items() if key.startswith(part)}
    outer = {key: said.entries[key] for key in ("model_type", "tie_word_embeddings") if key in said.entries}
    kept = {key: entry for key, entry in inner.items() if key not in ("model_type", "architectures")}
    return Said({**outer, **kept}, said.broken, said.asked)
