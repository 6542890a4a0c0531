"""Strategy and run files: TOML with the fields of `Strategy` or `Run`, checked like every other file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from simulator.spec.reading import read_document, validated

if TYPE_CHECKING:
    from pydantic import BaseModel


def read_settings(path: Path | None, kind: type) -> Mapping[str, Any]:
    """The fields that a file sets, as keyword arguments of `kind` (Run or Strategy); none for no file.

    Raises InputError naming file, line and key for what is unknown or of the wrong type.
    """
    if path is None:
        return {}
    settings = validated(read_document(path), _file_class(kind))
    return settings.model_dump(exclude_unset=True)


@cache
def _file_class(kind: type) -> type[BaseModel]:
    """A pydantic class with the dataclass's fields, all optional and strict."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(kind)
    columns: dict[str, Any] = {entry.name: (hints[entry.name], None) for entry in fields(kind)}
    return create_model(f"{kind.__name__}File", __config__=ConfigDict(extra="forbid"), **columns)
