"""Puts the catalogues inside the wheel, at simulator/_catalog/ (DESIGN 1).

They stand at the top of the repository, as data, and an editable install reads them there. A wheel must not drop
folders called `models` or `hardware` into site-packages, where they would hide a user's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CATALOGUES = ("models", "hardware", "frameworks")
RECORDS = ("validation/residuals.csv", "validation/differences.csv")
"""What the last validation left over: prediction intervals and ties are read off it."""


class CatalogHook(BuildHookInterface):
    """Maps every TOML of the catalogues to its place in the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to a standard wheel; an editable one (`version` is "editable") reads the checkout itself."""
        if version != "standard":
            return
        for kind in CATALOGUES:
            files = sorted((Path(self.root) / kind).rglob("*.toml"))
            if not files:
                raise FileNotFoundError(f"{kind}/ holds no TOML file: the wheel would have an empty catalogue")
            for file in files:
                place = file.relative_to(self.root).as_posix()
                build_data["force_include"][place] = f"simulator/_catalog/{place}"
        for record in RECORDS:
            build_data["force_include"][record] = f"simulator/_catalog/{record}"
