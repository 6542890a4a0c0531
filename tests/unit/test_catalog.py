"""The catalogue: names, aliases, extra folders, refusals."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import catalog
from simulator.errors import InputError

ROOT = Path(__file__).parents[2]


def said(function: object, *arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)  # type: ignore[operator]
    return str(caught.value)


@pytest.fixture
def extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An extra catalogue folder, named by the environment variable."""
    (tmp_path / "hardware" / "devices").mkdir(parents=True)
    monkeypatch.setenv(catalog.ENVIRONMENT, str(tmp_path))
    return tmp_path


def test_names_are_sorted_and_of_the_files() -> None:
    """Every TOML file below a folder is a name, and nothing else is."""
    assert catalog.names("devices") == tuple(sorted(p.stem for p in (ROOT / "hardware/devices").glob("*.toml")))
    assert catalog.names("models") == tuple(sorted(p.stem for p in (ROOT / "models").rglob("*.toml")))
    assert "megatron-core" in catalog.names("frameworks")


@pytest.mark.parametrize("kind", ["devices", "clusters", "models", "frameworks"])
def test_everything_in_the_catalogue_loads(kind: str) -> None:
    """Each name loads and gives a value of that name."""
    load = {"devices": catalog.load_device, "clusters": catalog.load_cluster, "models": catalog.load_model,
            "frameworks": catalog.load_framework}[kind]  # fmt: skip
    assert [load(name).name for name in catalog.names(kind)] == list(catalog.names(kind))


def test_every_device_of_the_published_runs_is_known() -> None:
    """Rows of validation/runs name devices that the catalogue has, with a usual cluster for their counts."""
    seen: dict[tuple[str, str, str], None] = {}
    for path in sorted((ROOT / "validation" / "runs").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                seen[row["device"], row["devices"], row["devices_per_node"]] = None
    assert len(seen) > 50
    for device, devices, per_node in seen:
        cluster = catalog.cluster_for(device, int(float(devices)), int(float(per_node)) if per_node else None)
        assert cluster.devices == int(float(devices))


def test_kernel_tables_spell_devices_their_own_way() -> None:
    """Names of the kernel tables are aliases."""
    spelt = ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200", "gb300", "l40s", "tpu7x")
    found = [catalog.load_device(name).name for name in spelt]
    assert found == ["a100-sxm-80gb", "h100-sxm-80gb", "h200-sxm-141gb", "b200-sxm-180gb", "b300-sxm-288gb",
                     "gb200", "gb300", "l40s-48gb", "tpu-v7"]  # fmt: skip


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (catalog.load_model, "gpt3-175", "no model is called gpt3-175. Did you mean gpt3-175b?"),
        (catalog.load_model, "GPT3 175B",
         "'GPT3 175B' is no model name: those are [a-z0-9][a-z0-9._-]{0,63}. Did you mean gpt3-175b?"),
        (catalog.load_device, "a100-sxm-80g", "no device is called a100-sxm-80g. Did you mean a100-sxm-80gb?"),
        (catalog.load_device, "zzz", "no device is called zzz. `shardwise catalog list devices` lists them."),
        (catalog.load_cluster, "dgx_a100", "no cluster is called dgx_a100. Did you mean dgx-a100?"),
        (catalog.load_framework, "megatron", "no framework is called megatron. Did you mean megatron-core?"),
        (catalog.load_model, "", "'' is no model name: those are [a-z0-9][a-z0-9._-]{0,63}."),
        (catalog.load_model, "..", "'..' is no model name: those are [a-z0-9][a-z0-9._-]{0,63}."),
        (catalog.load_model, "a" * 65, f"'{'a' * 64}' is no model name: those are [a-z0-9][a-z0-9._-]{{0,63}}."),
        (catalog.load_model, "no/such/file.toml", "no/such/file.toml: no such file."),
        (catalog.load_model, "../../etc/passwd", "../../etc/passwd: only TOML files are read here."),
        (catalog.load_cluster, "cluster.json", "cluster.json: only TOML files are read here."),
        (catalog.names, "model", "model is no kind of catalogue entry. Did you mean models?"),
    ],
)  # fmt: skip
def test_unknown_names_are_answered(load: object, name: str, message: str) -> None:
    """With the nearest name where there is one, never with a path tried."""
    assert said(load, name) == message


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (0, "--nodes: dgx-a100 cannot have 0 nodes; it needs at least 1."),
        (-3, "--nodes: dgx-a100 cannot have -3 nodes; it needs at least 1."),
        (
            10**9,
            (
                "--nodes: nodes(1,000,000,000) * devices_per_node(8) = 8,000,000,000 devices > 10,000,000. "
                "At most 1,250,000 nodes are modelled."
            ),
        ),
    ],
)
def test_numbers_of_nodes_that_cannot_be(nodes: int, message: str) -> None:
    """Answered at once, with the limit."""
    assert said(catalog.load_cluster, "dgx-a100", nodes) == message


def test_a_torus_ends_where_its_pod_ends() -> None:
    """TPU v3 pods are not joined by anything the catalogue has a figure for."""
    message = said(catalog.load_cluster, "tpu-v3-pod", 512)
    assert message == (
        "--nodes: tpu-v3-pod: 2,048 devices, but the outermost tier (ici) joins 1,024. At most 256 nodes."
    )


def test_published_rows_get_their_node() -> None:
    """The NIC is the row's, the device the row's, and what was taken is said."""
    cluster = catalog.cluster_for("a800-sxm-80gb", 64, 8, 6.25e9)
    assert (cluster.nodes, cluster.device.name) == (8, "a800-sxm-80gb")
    assert [tier.bandwidth_bytes_per_s for tier in cluster.tiers] == [200e9, 6.25e9]
    assert cluster.sources["assumed"] == "nodes and fabric of hgx-a800"
    rack = catalog.cluster_for("gb200", 128, 8)
    assert (rack.devices_per_node, rack.nodes, rack.tiers[0].size) == (4, 32, 64)
    assert "4 devices per node (8 given" in rack.sources["assumed"]
    assert catalog.cluster_for("v100-sxm2-32gb", 64, 4).name == "jean-zay-v100"
    assert catalog.cluster_for("v100-sxm2-32gb", 4, 4).tiers[0].topology == "hybrid-cube-mesh"
    odd = catalog.cluster_for("h100-sxm-80gb", 20, 8)
    assert (odd.devices_per_node, odd.nodes) == (5, 4)
    assert "must be at least 1" in said(catalog.cluster_for, "h100-sxm-80gb", 0)


def device_text(memory: str = "80 GiB", aliases: str = "[]") -> str:
    return (
        f'title = "Mine"\nvendor = "Me"\ngeneration = "mine"\nstatus = "unverified"\naliases = {aliases}\n'
        f'memory = "{memory}"\nmemory_bandwidth = "1 TB/s"\n[peak]\nbf16 = "100 TFLOP/s"\n'
        '[sources]\nmemory = "x"\nmemory_bandwidth = "x"\npeak = "x"\n'
    )


def test_an_extra_folder_adds_and_wins(extra: Path) -> None:
    """Its files are found by name, and replace shipped ones of that name."""
    (extra / "hardware/devices/mine.toml").write_text(device_text())
    (extra / "hardware/devices/mi300x.toml").write_text(device_text("1 GiB"))
    assert catalog.load_device("mine").memory_bytes == 80 * 2.0**30
    assert catalog.load_device("mi300x").memory_bytes == 2.0**30
    assert catalog.load_device("mi325x").title == "AMD Instinct MI325X"


def test_the_working_folder_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder models/ that happens to be there changes nothing."""
    (tmp_path / "hardware" / "devices").mkdir(parents=True)
    (tmp_path / "hardware/devices/mine.toml").write_text(device_text())
    monkeypatch.chdir(tmp_path)
    assert "mine" not in catalog.names("devices")
    assert catalog.load_device("hardware/devices/mine.toml").name == "mine"


def test_a_bad_extra_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, empty, or not a folder."""
    monkeypatch.setenv(catalog.ENVIRONMENT, str(tmp_path / "nowhere"))
    assert said(catalog.names, "models") == f"SHARDWISE_CATALOG: {tmp_path}/nowhere is not a folder."
    assert said(catalog.add_catalog, tmp_path / "nowhere") == f"--catalog: {tmp_path}/nowhere is not a folder."
    wanted = "models, hardware/devices, hardware/clusters, hardware/calibration, frameworks"
    assert said(catalog.add_catalog, tmp_path).endswith(f"holds none of the folders {wanted}.")


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("Bad Name.toml", "Bad Name.toml: the name of a catalogue file is [a-z0-9][a-z0-9._-]{0,63}.toml."),
        ("sub/twice.toml", "sub/twice.toml: the name twice is taken already by ROOT/hardware/devices/twice.toml."),
    ],
)
def test_file_names_of_an_extra_folder_are_checked(extra: Path, name: str, ending: str) -> None:
    """One name, one file."""
    (extra / "hardware/devices/sub").mkdir()
    (extra / "hardware/devices/twice.toml").write_text(device_text())
    (extra / "hardware/devices" / name).write_text(device_text())
    assert said(catalog.names, "devices").endswith(ending.replace("ROOT", str(extra)))


def test_links_out_of_the_catalogue_are_refused(extra: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A link to a file elsewhere would read what nobody named."""
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.toml"
    secret.write_text(device_text())
    (extra / "hardware/devices/link.toml").symlink_to(secret)
    assert said(catalog.names, "devices").endswith("link.toml: is a link that leaves the catalogue.")


def test_an_alias_belongs_to_one_file(extra: Path) -> None:
    """Two owners of an alias are named."""
    (extra / "hardware/devices/mine.toml").write_text(device_text(aliases='["a100_sxm"]'))
    assert said(catalog.load_device, "b200_sxm").endswith(
        "mine.toml: the alias a100_sxm is taken already by a100-sxm-80gb."
    )


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (256 * 1024 + 1), b"a = " + b"[" * 5000])
def test_files_that_are_no_catalogue_files(tmp_path: Path, content: bytes) -> None:
    """Bytes, size and depth are answered with the file's name."""
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert said(catalog.load_device, str(path)).startswith(str(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """Said as such."""
    (tmp_path / "x.toml").mkdir()
    assert said(catalog.load_device, str(tmp_path / "x.toml")).endswith("is a folder, a TOML file is wanted.")


@given(st.text(max_size=80))
def test_any_name_is_answered(name: str) -> None:
    """A model of that name or an InputError, nothing else."""
    with contextlib.suppress(InputError):
        assert catalog.load_model(name).name == name


def test_raw_tables_are_given_to_readers_of_their_own_formats() -> None:
    """Network calibrations are read elsewhere."""
    assert catalog.catalog_table("calibration", "network-ampere")["generation"] == "ampere"


def test_models_have_aliases_too() -> None:
    """Names that people and tables of runs use."""
    assert catalog.load_model("llama3-70b").name == "llama3.1-70b"
    assert catalog.load_model("mixtral") is not None


def test_entries_of_any_kind_are_shown() -> None:
    """The table and the text as it stands, by name or alias."""
    table, text = catalog.entry("dgx-a100")
    assert table["device"] == "a100-sxm-80gb"
    assert text == (ROOT / "hardware/clusters/dgx-a100.toml").read_text(encoding="utf-8")
    assert catalog.entry("tpu7x")[0]["vendor"] == "Google"
    assert said(catalog.entry, "dgx-a10") == "nothing in the catalogue is called dgx-a10. Did you mean dgx-a100?"
