"""The wheel is what users install: built, installed into a clean environment, and run beside their own `models/`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CATALOGUES = ("models", "hardware", "frameworks")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


Done = subprocess.CompletedProcess[str]


def _run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Done:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the hatchling at hand (no network)."""
    out = tmp_path_factory.mktemp("wheel")
    built = _run(*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", out, root, cwd=out)
    assert built.returncode == 0, built.stderr
    (file,) = out.glob("shardwise-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a clean environment that holds the wheel.

    What the wheel depends on comes from this environment by a path file: in a folder that is only on the path, other
    path files (an editable install of this project) are not read, so nothing of the checkout can be seen.
    """
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    scheme = {"base": str(home), "platbase": str(home)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    commands = Path(sysconfig.get_path("scripts", "venv", vars=scheme))
    done = _run(*PIP, "--python", commands / "python", "install", "--no-deps", "--no-index", wheel, cwd=home)
    assert done.returncode == 0, done.stderr
    return commands


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A user's folder with a package `models` and folder `hardware` of their own."""
    (tmp_path / "models").mkdir()
    trap = "raise SystemExit('the user package was imported')\n"
    (tmp_path / "models" / "__init__.py").write_text(trap, encoding="utf-8")
    (tmp_path / "models" / "gpt3-175b.toml").write_text("this is not ours\n", encoding="utf-8")
    (tmp_path / "hardware").mkdir()
    return tmp_path


def _clean() -> dict[str, str]:
    hidden = ("PYTHON", "COVERAGE", "SHARDWISE")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


def test_the_wheel_holds_one_package_and_every_catalogue_file(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"simulator"}
    assert "simulator/py.typed" in names
    shipped = {name.removeprefix("simulator/_catalog/") for name in names if name.startswith("simulator/_catalog/")}
    files = {f.relative_to(root).as_posix() for kind in CATALOGUES for f in (root / kind).rglob("*.toml")}
    assert shipped == {*files, "validation/residuals.csv", "validation/differences.csv"}
    code = {f.relative_to(root).as_posix() for f in (root / "simulator").rglob("*.py")}
    assert code == {name for name in names if name.endswith(".py")}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_two_builds_are_the_same_bytes(wheel: Path, root: Path, tmp_path: Path) -> None:
    built = _run(*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", tmp_path, root, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_installed_package_is_not_the_checkout(installed: Path, elsewhere: Path, root: Path) -> None:
    code = "import simulator, pathlib; print(pathlib.Path(simulator.__file__).resolve())"
    done = _run(installed / "python", "-P", "-c", code, cwd=elsewhere, env=_clean())
    assert done.returncode == 0, done.stderr
    assert root not in Path(done.stdout.strip()).parents


def test_the_command_runs_beside_a_users_own_models(installed: Path, elsewhere: Path) -> None:
    done = _run(installed / "shardwise", "count", "gpt3-175b", "--json", cwd=elsewhere, env=_clean())
    assert done.returncode == 0, done.stderr
    # Brown et al. 2020, table 2.1: 175.0 B with rounding to 0.1 B; the count by hand is in tests/unit.
    assert round(json.loads(done.stdout)["parameters"]["total"] / 1e9) == 175


def test_an_estimate_runs_from_the_wheel(installed: Path, elsewhere: Path) -> None:
    case = ("gpt3-175b", "dgx-a100", "--nodes", "128", "--tp", "8", "--pp", "8", "--global-batch", "1536", "--json")
    done = _run(installed / "shardwise", "estimate", *case, cwd=elsewhere, env=_clean())
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["step_time_low_s"] <= answer["step_time_s"] <= answer["step_time_high_s"]


def test_a_users_own_models_stay_importable(installed: Path, elsewhere: Path) -> None:
    (elsewhere / "models" / "__init__.py").write_text("mine = True\n", encoding="utf-8")
    code = "import sys; sys.path.insert(0, ''); import simulator, models; print(models.mine)"
    done = _run(installed / "python", "-c", code, cwd=elsewhere, env=_clean())
    assert done.stdout.strip() == "True", done.stderr


def test_the_module_is_the_command_too(installed: Path, elsewhere: Path) -> None:
    done = _run(installed / "python", "-P", "-m", "simulator", "--version", cwd=elsewhere, env=_clean())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("shardwise")
