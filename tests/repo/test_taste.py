"""Rules of the house that a reader should never have to check by eye."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CODE = (".py", ".toml", ".js", ".mjs", ".css", ".html", ".mplstyle", ".json", ".csv", ".mk", "")
HEAVY = ("dask", "distributed", "matplotlib", "networkx", "pandas", "pyarrow", "ray", "scipy", "torch", "transformers")
TORCH_INSIDE = ("simulator.validate.torch_counts.", "simulator.calibrate.", "simulator.measure.")
"""Packages whose inner modules subclass torch's classes; the rest reaches them inside functions only."""
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError|NotImplemented)\b")


def _tracked(root: Path) -> list[Path]:
    """Files that git tracks, so that a build folder or an environment does not count."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    return [root / name for name in listed.decode().split("\0") if name and (root / name).is_file()]


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[Path]:
    if not (root / ".git").exists():  # An unpacked sdist.
        return [file for file in root.rglob("*") if file.is_file() and not {".venv", ".git"} & set(file.parts)]
    return _tracked(root)


def _sources(root: Path) -> list[Path]:
    return sorted((root / "simulator").rglob("*.py"))


def test_catalogues_are_data_and_never_packages(root: Path) -> None:
    # With an editable install the repository stands on sys.path: a package here would hide a user's own `models`.
    python = [str(f.relative_to(root)) for c in ("models", "hardware", "frameworks") for f in (root / c).rglob("*.py")]
    assert not python


def test_tests_are_files_and_not_packages(root: Path) -> None:
    assert not list((root / "tests").rglob("__init__.py"))


def test_only_the_command_line_prints(root: Path) -> None:
    printing = [
        f"{file.relative_to(root)}:{node.lineno}"
        for file in _sources(root)
        if not file.relative_to(root / "simulator").parts[0].startswith("cli")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"print", "input"})
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.stdout", "sys.stderr", "click.echo"})
    ]
    assert not printing


def test_user_input_is_never_checked_by_assert(root: Path) -> None:
    asserts = [
        f"{file.relative_to(root)}:{node.lineno}"
        for file in _sources(root)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert not asserts, f"assert vanishes under python -O; raise an InputError or restructure: {asserts}"


def test_nothing_is_read_as_code(root: Path) -> None:
    dangerous = {"eval", "exec", "compile", "__import__", "pickle", "marshal", "shelve", "yaml"}
    found = []
    for file in _sources(root):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = [node.func.id]
            elif isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").split(".")[0]]
            found += [f"{file.relative_to(root)}:{node.lineno}: {name}" for name in names if name in dangerous]
    assert not found


def test_nothing_is_left_unfinished(root: Path) -> None:
    found = [
        f"{file.relative_to(root)}:{number}: {line.strip()}"
        for file in _sources(root)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if UNFINISHED.search(line)
    ]
    assert not found


def test_code_is_ascii(root: Path, tracked: list[Path]) -> None:
    # Titles of papers and people's names stand in catalogue files and prose, which may need other letters.
    catalogues = {"models", "hardware", "frameworks", "validation"}
    found = []
    for file in tracked:
        place = file.relative_to(root)
        if place.parts[0] in catalogues or file.suffix not in CODE or file.name == "LICENSE":
            continue
        text = file.read_text(encoding="utf-8")
        if not text.isascii():
            line = next(n for n, row in enumerate(text.splitlines(), start=1) if not row.isascii())
            found.append(f"{place}:{line}")
    assert not found


def test_every_file_is_clean_text(root: Path, tracked: list[Path]) -> None:
    untidy = []
    for file in tracked:
        if file.suffix not in {".py", ".toml", ".md", ".js", ".css", ".html", ".txt", ""} or file.name == "Makefile":
            continue
        text = file.read_bytes()
        if b"\r" in text or b"\t" in text or (text and not text.endswith(b"\n")):
            untidy.append(str(file.relative_to(root)))
    assert not untidy, f"carriage returns, tabs, or no newline at the end: {untidy}"


def test_importing_any_module_loads_nothing_heavy(root: Path) -> None:
    names = [
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in _sources(root)
    ]
    names = [name for name in names if not name.startswith(TORCH_INSIDE)]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    if heavy: sys.exit(f'{name} loads {heavy} when imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_alone_loads_no_dependency(root: Path) -> None:
    mine = ("click", "numpy", "pydantic", "rich", *HEAVY)
    code = f"import simulator, sys; sys.exit(' '.join(m for m in {mine!r} if m in sys.modules) or None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_loads_no_more_than_the_command_line_needs(root: Path) -> None:
    code = (
        "import sys\n"
        "from simulator.cli import run\n"
        "code = run(['--help'])\n"
        f"sys.exit(code or ' '.join(m for m in ('numpy', 'pydantic', 'rich', *{HEAVY!r}) if m in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "estimate" in done.stdout


def test_public_dataclasses_are_frozen_values(root: Path) -> None:
    builders = {
        "RankOrder": "a rank's order while it is being made",
        "TaskGraph": "tasks while they are being issued",
    }
    thawed = []
    for file in _sources(root):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in builders:
                decorators = [ast.unparse(d) for d in node.decorator_list if "dataclass" in ast.unparse(d)]
                if any("frozen=True" not in text for text in decorators):
                    thawed.append(f"{file.relative_to(root)}:{node.lineno}: {node.name}")
    assert not thawed, f"dataclasses are frozen: {thawed}"


def test_the_version_is_said_once(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    package = (root / "simulator" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(\d+\.\d+\.\d+)"$', package, re.MULTILINE)
    assert version, 'simulator/__init__.py says __version__ = "MAJOR.MINOR.PATCH"'
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    assert newest
    assert newest[1] == version[1], "the newest entry of CHANGELOG.md is this version"
