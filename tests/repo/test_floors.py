"""The house: a file imports only from lower floors, and files of one floor do not import in a circle."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest

from tests.repo.imports import Import, imports_of, modules

FLOORS = {
    0: ("errors", "units", "numbers", "pictures"),
    1: ("spec", "catalog"),
    2: ("arch",),
    3: ("cluster",),
    4: ("parallel",),
    5: ("schedule",),
    6: ("provenance", "result", "intervals", "count", "check", "lowered", "breakdown", "unequal", "estimate", "explain",
        "sensitivity"),
    7: ("plan", "sweep", "validate", "calibrate", "measure", "compare", "project", "serving", "fleet"),
    8: ("io", "report", "web"),
    9: ("cli", "__main__"),
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}


def floor_of(module: str) -> int | None:
    """The floor of a dotted module name; the package itself (its public names) is the roof, as the commands are."""
    parts = module.split(".")
    if len(parts) == 1:
        return 9
    return 9 if parts[1].startswith("cli_") else FLOOR_OF.get(parts[1])


@pytest.fixture(scope="module")
def known(root: Path) -> dict[str, Path]:
    return modules(root)


@pytest.fixture(scope="module")
def imports(known: dict[str, Path]) -> list[Import]:
    return [found for name in known for found in imports_of(name, known)]


def test_every_module_has_a_floor(known: dict[str, Path]) -> None:
    homeless = sorted(name for name in known if floor_of(name) is None)
    assert not homeless, f"{homeless} have no floor: put them under an existing one, or name it in FLOORS and the docs"


def test_nobody_imports_upwards(imports: list[Import]) -> None:
    upwards = {
        f"{i.importer} (F{floor_of(i.importer)}), line {i.line}, imports {i.imported} (F{floor_of(i.imported)})"
        for i in imports
        if floor_of(i.importer) is not None and (floor_of(i.importer) or 0) < (floor_of(i.imported) or 0)
    }
    assert not upwards, "\n".join(sorted(upwards))


def test_no_module_imports_itself_in_a_circle(imports: list[Import], known: dict[str, Path]) -> None:
    graph = nx.DiGraph((i.importer, i.imported) for i in imports if i.imported in known)
    circles = [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]
    assert not circles


def test_an_import_upwards_would_be_found(tmp_path: Path) -> None:
    package = tmp_path / "simulator"
    (package / "arch").mkdir(parents=True)
    for name in ("__init__.py", "arch/__init__.py", "estimate.py"):
        (package / name).write_text("", encoding="utf-8")
    (package / "arch" / "block.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from .. import errors\n"
        "if TYPE_CHECKING:\n    from simulator import cli\n"
        "def f():\n    from simulator.estimate import estimate\n",
        encoding="utf-8",
    )
    (package / "errors.py").write_text("", encoding="utf-8")
    found = imports_of("simulator.arch.block", modules(tmp_path))
    assert [(i.imported, i.line, i.deferred) for i in found] == [
        ("simulator.errors", 2, False),
        ("simulator.estimate", 6, True),
    ]
    assert floor_of("simulator.estimate") == 6
    assert floor_of("simulator.nonsense") is None
