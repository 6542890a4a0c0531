"""Fit the measured constants of each GPU generation's collectives; writes hardware/calibration/network-*.toml.

    python tools/fit_network.py FOLDER [--out hardware/calibration]

FOLDER holds nccl.csv.gz (single-node nccl-tests of A100, H100 and B200, published by ai-dynamo/aiconfigurator,
Apache-2.0) and collectives.csv (nccl-tests and profiles of other machines). Rows whose size is an even power of
two are fitted; odd powers are held out, and both residuals are written beside the constants. Nothing here has
seen the step time of a training run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from simulator.cluster.constants import NetworkConstants, constants_from
from simulator.cluster.network import collective_curve
from simulator.cluster.placement import Group
from simulator.spec.hardware import Cluster, Device, Tier
from simulator.spec.kernels import KernelModel

FAMILIES = {
    "volta": ("V100", 150e9, "hybrid-cube-mesh"),
    "ampere": ("a100_sxm", 300e9, "switch"),
    "hopper": ("h100_sxm", 450e9, "switch"),
    "blackwell": ("b200_sxm", 900e9, "switch"),
}
LARGE_BYTES = 2**20
RING = (
    "base_ll",
    "hop_ll",
    "rate_ll",
    "base_128",
    "hop_128",
    "rate_128",
    "base_simple",
    "hop_simple",
    "base_part",
    "hop_part",
    "rate_part",
)
A2A = (
    "a2a_base_ll",
    "a2a_hop_ll",
    "a2a_rate_ll",
    "a2a_base_part",
    "a2a_hop_part",
    "a2a_rate_part",
    "a2a_base",
    "a2a_hop",
)
COPIES = ("all_reduce", "all_gather", "reduce_scatter")
# Starting points; microseconds, bytes per microsecond, fractions of the link.
START = {
    "base_ll": 6.0, "hop_ll": 1.0, "rate_ll": 80e3, "base_128": 12.0, "hop_128": 1.2, "rate_128": 200e3,
    "base_part": 16.0, "hop_part": 1.5, "rate_part": 300e3, "a2a_base_part": 11.0, "a2a_hop_part": 0.2,
    "a2a_rate_part": 200e3, "base_simple": 20.0, "hop_simple": 2.0, "link_simple": 0.8,
    "all_reduce": 1e6, "all_gather": 1e6, "reduce_scatter": 1e6, "nvls_base": 35.0, "nvls_link": 0.65,
    "a2a_base_ll": 8.0, "a2a_hop_ll": 0.1, "a2a_rate_ll": 100e3, "a2a_base": 14.0, "a2a_hop": 0.3, "a2a_link": 0.75,
    "all_to_all": 1e6, "send_base_ll": 6.0, "send_rate_ll": 60e3, "send_base": 9.0, "send_link": 0.8,
}  # fmt: skip


def cluster_of(generation: str, bandwidth: float, topology: str) -> Cluster:
    """One node of eight devices; only what the network model reads is filled in."""
    device = Device(
        name=generation, title=generation, vendor="nvidia", generation=generation, peak_flops_per_s={},
        vector_flops_per_s=0.0, memory_bytes=0.0, memory_bandwidth_bytes_per_s=0.0,
        kernels=KernelModel(constants={}, provenance="assumed"),
    )  # fmt: skip
    tier = Tier(
        name="node", kind="nvlink", topology=topology, size=8, bandwidth_bytes_per_s=bandwidth, latency_s=0.0,
        reduce_in_switch=generation in ("hopper", "blackwell"),
    )  # fmt: skip
    return Cluster(name=generation, title=generation, device=device, devices_per_node=8, nodes=1, tiers=(tier,))


def document(generation: str, value: dict[str, float]) -> dict[str, object]:
    """The calibration document of a parameter set."""

    def regime(base: str, hop: str | float, link: float, rate: str = "") -> dict[str, float]:
        table = {"base_s": value[base] * 1e-6, "hop_s": (value[hop] if isinstance(hop, str) else hop) * 1e-6}
        if rate:
            table["rate_bytes_per_s"] = value[rate] * 1e6
        return {**table, "link_fraction": link}

    nvls = generation in ("hopper", "blackwell")
    link = value["link_simple"]
    return {
        "generation": generation,
        "provenance": "fitted",
        "protocols": {
            "ll": regime("base_ll", "hop_ll", 0.5 * link, "rate_ll"),
            "ll128": regime("base_128", "hop_128", 0.92 * link, "rate_128"),
            "part": regime("base_part", "hop_part", 0.8 * link, "rate_part"),
            "simple": regime("base_simple", "hop_simple", link),
        },
        "all_to_all": {
            "ll": regime("a2a_base_ll", "a2a_hop_ll", 0.5 * value["a2a_link"], "a2a_rate_ll"),
            "part": regime("a2a_base_part", "a2a_hop_part", 0.8 * value["a2a_link"], "a2a_rate_part"),
            "simple": regime("a2a_base", "a2a_hop", value["a2a_link"]),
        },
        "send": {
            "ll": regime("send_base_ll", 0.0, 0.5 * value["send_link"], "send_rate_ll"),
            "simple": regime("send_base", 0.0, value["send_link"]),
        },
        "copy_bytes_per_s": {kind: value[kind] * 1e6 for kind in (*COPIES, "all_to_all")},
        "nvls": {"base_s": value["nvls_base"] * 1e-6, "link_fraction": value["nvls_link"]} if nvls else {},
    }


def rows_of(folder: Path, device: str) -> pd.DataFrame:
    """Measured rows of one device as kind, devices, bytes, seconds."""
    nccl = pd.read_csv(folder / "nccl.csv.gz").query("device == @device")
    kinds = nccl.collective.replace({"alltoall": "all_to_all"})
    table = pd.DataFrame({"kind": kinds, "n": nccl.devices, "bytes": nccl.bytes, "s": nccl.latency_ms * 1e-3})
    other = pd.read_csv(folder / "collectives.csv")
    if device == "V100":
        rows = other[(other.device == "V100") & (other.op == "all_reduce")]
        return pd.DataFrame(
            {"kind": "all_reduce", "n": rows.devices, "bytes": rows.size_bytes, "s": rows.time_us * 1e-6}
        )
    names = {"a100_sxm": "A100-80GB", "h100_sxm": "H100-80GB"}
    rows = other[
        (other.device == names.get(device, "")) & (other.op == "send_recv") & (other.devices_per_node == 2)
        & other.interconnect.str.contains("DGX", na=False)
    ]  # fmt: skip
    sends = pd.DataFrame({"kind": "send", "n": rows.devices, "bytes": rows.size_bytes, "s": rows.time_us * 1e-6})
    return pd.concat([table, sends], ignore_index=True)


def predict(cluster: Cluster, constants: NetworkConstants, rows: pd.DataFrame) -> np.ndarray:
    """Seconds of every row."""
    out = np.zeros(len(rows))
    for kind, part in rows.groupby("kind"):
        places = rows.index.get_indexer(part.index)
        curve = collective_curve(
            cluster, str(kind), Group(part.n.to_numpy(), np.ones(len(part), dtype=int)), constants=constants
        )
        out[places] = curve.time_s(part.bytes.to_numpy(dtype=float))
    return out


def solve(
    names: tuple[str, ...], start: dict[str, float], error: Callable[[dict[str, float]], np.ndarray]
) -> dict[str, float]:
    """Least squares on the log of the parameters, soft-L1, from a few starting points."""
    origin = np.log([start[name] for name in names])
    best = None
    for trial in range(8):
        shift = np.random.default_rng(trial).normal(0.0, 0.25, len(names)) * (trial > 0)

        def residual(point: np.ndarray) -> np.ndarray:
            prior = 0.02 * (point - origin)
            return np.concatenate([error({**start, **dict(zip(names, np.exp(point), strict=True))}), prior])

        found = least_squares(residual, origin + shift, loss="soft_l1", f_scale=0.1, max_nfev=60)
        if best is None or found.cost < best.cost:
            best = found
    return {**start, **dict(zip(names, (float(x) for x in np.exp(best.x)), strict=True))}


def slopes(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds per byte between the two largest sizes of each kind and count: latencies cancel."""
    out = []
    for (kind, n), part in rows.groupby(["kind", "n"]):
        small, large = (part.sort_values("bytes").iloc[i] for i in (-2, -1))
        out.append({"kind": kind, "n": n, "bytes": 1.0, "s": (large.s - small.s) / (large.bytes - small.bytes)})
    return pd.DataFrame(out)


def fit_rates(cluster: Cluster, generation: str, rows: pd.DataFrame, value: dict[str, float]) -> dict[str, float]:
    """Link and copy rates from the slopes of large messages, where latencies cancel."""
    steep = slopes(rows[rows.kind != "send"])
    in_switch = (steep.kind == "all_reduce") & (steep.n == 8) & (generation in ("hopper", "blackwell"))
    if in_switch.any():
        value = {
            **value,
            "nvls_link": float(9 / 8 / steep[in_switch].s.iloc[0]) / cluster.tiers[0].bandwidth_bytes_per_s,
        }
    for names, kinds in (((*COPIES, "link_simple"), COPIES), (("all_to_all", "a2a_link"), ("all_to_all",))):
        part = steep[~in_switch & steep.kind.isin(kinds)].reset_index(drop=True)
        present = tuple(name for name in names if name in (*part.kind, "link_simple", "a2a_link"))
        if part.empty:
            continue

        def error(value: dict[str, float], part: pd.DataFrame = part) -> np.ndarray:
            constants = constants_from(document(generation, value))
            found = np.zeros(len(part))
            for i, row in enumerate(part.itertuples()):
                ways = collective_curve(cluster, row.kind, Group(int(row.n)), constants=constants).candidates
                found[i] = next(way.s_per_byte for way in ways if way.name in ("ring/simple", "pairwise/simple"))
            return np.log(found / part.s.to_numpy()) * 10

        value = solve(present, value, error)
    return value


def fit(generation: str, rows: pd.DataFrame) -> dict[str, float]:
    """The constants of one generation from its fitted rows."""
    _, bandwidth, topology = FAMILIES[generation]
    cluster = cluster_of(generation, bandwidth, topology)
    even = np.log2(rows.bytes).round().astype(int) % 2 == 0
    value = fit_rates(cluster, generation, rows, dict(START))
    nvls = ("nvls_base",) if generation in ("hopper", "blackwell") else ()
    stages = [
        (RING + nvls, COPIES),
        (A2A, ("all_to_all",)),
        (("send_base_ll", "send_rate_ll", "send_base", "send_link"), ("send",)),
    ]
    for names, kinds in stages:
        part = rows[even & rows.kind.isin(kinds)].reset_index(drop=True)
        if part.empty:
            continue
        weight = np.where(part.bytes >= LARGE_BYTES, 1.0, 0.35) * np.where(part.bytes >= 2**27, 2.0, 1.0)

        def error(value: dict[str, float], part: pd.DataFrame = part, weight: np.ndarray = weight) -> np.ndarray:
            constants = constants_from(document(generation, value))
            return np.log(predict(cluster, constants, part) / part.s.to_numpy()) * weight

        value = solve(names, value, error)
    return value


def residuals(cluster: Cluster, constants: NetworkConstants, rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Mean absolute relative error by kind, size class and whether the rows were fitted."""
    error = np.abs(predict(cluster, constants, rows) / rows.s.to_numpy() - 1.0)
    even = (np.log2(rows.bytes).round().astype(int) % 2 == 0).to_numpy()
    large = (rows.bytes >= LARGE_BYTES).to_numpy()
    table: dict[str, dict[str, float]] = {}
    for kind in sorted(set(rows.kind)):
        chosen = (rows.kind == kind).to_numpy()
        table[kind] = {"rows": float(chosen.sum())}
        for name, part in (("from_1mib", large), ("below_1mib", ~large)):
            for held, half in (("fitted", even), ("held_out", ~even)):
                if (chosen & part & half).any():
                    table[kind][f"{held}_{name}"] = float(error[chosen & part & half].mean())
    return table


def toml(table: dict[str, object], prefix: str = "") -> str:
    """A nested mapping as TOML, numbers to five digits."""
    lines = [f"{key} = {value!r}".replace("'", '"') for key, value in table.items() if isinstance(value, str)]
    lines += [f"{key} = {value:.5g}" for key, value in table.items() if isinstance(value, float)]
    text = "\n".join(lines) + ("\n" if lines else "")
    for key, value in table.items():
        if isinstance(value, dict) and value:
            leaf = any(not isinstance(item, dict) for item in value.values())
            text += (f"\n[{prefix}{key}]\n" if leaf else "") + toml(value, f"{prefix}{key}.")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("hardware/calibration"))
    parser.add_argument("--generation", choices=sorted(FAMILIES))
    options = parser.parse_args()
    for generation in [options.generation] if options.generation else FAMILIES:
        device, bandwidth, topology = FAMILIES[generation]
        rows = rows_of(options.folder, device)
        value = fit(generation, rows)
        result = document(generation, value)
        found = residuals(cluster_of(generation, bandwidth, topology), constants_from(result), rows)
        head = {"source": f"tools/fit_network.py on {len(rows)} rows of {device} (nccl.csv.gz, collectives.csv)"}
        text = toml({**head, **result, "residuals": found})
        (options.out / f"network-{generation}.toml").write_text(
            "# Measured constants of collectives; formulas in simulator/cluster/nccl.py. Residuals are mean absolute\n"
            "# relative errors; held_out rows (odd powers of two) were not fitted.\n" + text,
            encoding="utf-8",
        )
        print(generation, found)


if __name__ == "__main__":
    main()
