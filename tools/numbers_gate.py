"""Which predictions changed between two checkouts: the same grid on base and head, every difference listed.

    python tools/numbers_gate.py BASE HEAD [--out FILE.csv] [--tolerance 1e-9]

BASE and HEAD are folders (checkouts) or commits of this repository, which are exported to folders of their own. The
grid is models x clusters x strategies, about 2,000 points. A change of a number must be acknowledged by a [NUMBERS]
entry in CHANGELOG.md; a change of status (answered, refused, fits) always blocks. Prints one JSON document; exit 1 when
blocked.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ("step_time_s", "tokens_per_s", "mfu", "hfu", "peak_memory_bytes")
GRID = """
[case]
zero = 1
global_batch = 1024
[grid]
model = [
  "gpt3-175b", "gpt3-13b", "llama3.1-70b", "llama3.1-8b", "qwen3-32b", "mixtral-8x7b", "deepseek-v3", "bert-large",
  "t5-11b", "glam-64b-64e", "switch-c", "palm-540b", "gemma2-27b",
]
tp = [1, 8]
pp = [1, 4]
recompute = ["none", "selective", "full"]
ep = [1, 8]
[[zip]]
cluster = ["dgx-a100", "dgx-h100", "dgx-b200", "gb200-nvl72", "tpu-v4-pod", "llama3-24k-roce", "mi300x-8"]
nodes = [32, 32, 32, 64, 64, 32, 1]
"""


def checkout(name: str, folder: Path) -> Path:
    """A folder as it is, or a commit exported into `folder`."""
    if Path(name).is_dir():
        return Path(name).resolve()
    archive = subprocess.run(["git", "archive", name], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def predictions(root: Path, grid: Path, out: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """The grid as that checkout answers it: point -> row."""
    subprocess.run(
        [sys.executable, "-m", "simulator", "sweep", str(grid), "--out", str(out)], cwd=root, check=True,
        env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with (out / "results.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    axes = ("model", "cluster", "nodes", "tp", "pp", "recompute", "ep")
    return {tuple(row[axis] for axis in axes): row for row in rows}


def compare(
    base: Mapping[tuple[str, ...], Mapping[str, str]], head: Mapping[tuple[str, ...], Mapping[str, str]],
    tolerance: float,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Changed numbers, changed statuses, added and removed points."""
    changed: list[dict[str, Any]] = []
    status: list[dict[str, Any]] = []
    for point in base.keys() & head.keys():
        old, new = base[point], head[point]
        if (old["status"], old["fits"]) != (new["status"], new["fits"]):
            status.append({"point": list(point), "base": f"{old['status']} fits={old['fits']}",
                           "head": f"{new['status']} fits={new['fits']} {new['message']}"})  # fmt: skip
            continue
        pairs = [(name, float(old[name]), float(new[name])) for name in NUMBERS if old[name]]
        changed += [
            {"point": list(point), "what": name, "base": before, "head": after, "ratio": after / before}
            for name, before, after in pairs
            if abs(after / before - 1.0) > tolerance
        ]
    return {
        "changed": sorted(changed, key=lambda row: -abs(float(row["ratio"]) - 1.0)),
        "status": sorted(status, key=lambda row: row["point"]),
        "added": [{"point": list(point)} for point in sorted(head.keys() - base.keys())],
        "removed": [{"point": list(point)} for point in sorted(base.keys() - head.keys())],
    }


def acknowledged(base: Path, head: Path) -> bool:
    """Whether CHANGELOG.md gained a [NUMBERS] entry."""
    count = [(root / "CHANGELOG.md").read_text(encoding="utf-8").count("- [NUMBERS]") for root in (base, head)]
    return count[1] > count[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("head")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        grid = work / "grid.toml"
        grid.write_text(GRID, encoding="utf-8")
        roots = [checkout(given, work / side) for given, side in ((options.base, "base"), (options.head, "head"))]
        found = [predictions(root, grid, work / f"out-{index}") for index, root in enumerate(roots)]
        result = compare(found[0], found[1], options.tolerance)
        said = acknowledged(*roots)
    if options.out:
        with options.out.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["point", "what", "base", "head", "ratio"])
            for row in result["changed"]:
                writer.writerow([" ".join(row["point"]), row["what"], row["base"], row["head"], row["ratio"]])
    blocked = bool(result["status"]) or (bool(result["changed"]) and not said)
    counts = {kind: len(rows) for kind, rows in result.items()}
    print(json.dumps({
        "points": len(found[1]), **counts, "acknowledged": said, "blocked": blocked,
        "largest_changes": result["changed"][:20], "status_changes": result["status"][:20],
    }, indent=2))  # fmt: skip
    sys.exit(1 if blocked else 0)


if __name__ == "__main__":
    main()
