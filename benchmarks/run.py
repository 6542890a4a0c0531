"""`make bench`: every benchmark of the bench_*.py files beside this one, as ratios on one machine in one run.

A time in seconds says as much about the machine as about the code. So the run also times a reference, a fixed piece
of Python and numpy work, and prints each result as a multiple of it: a figure to compare between machines and days.

    python benchmarks/run.py [WORD ...] [--json FILE]     only benchmarks whose name holds one of the words
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402 (after the path)

from benchmarks.benchmark import Benchmark, best_s  # noqa: E402


def reference() -> Callable[[], None]:
    """The reference: 20,000 dictionary updates in Python and 20 passes over 20,000 numbers in numpy."""
    numbers = np.linspace(1.0, 2.0, 20_000)

    def call() -> None:
        table: dict[int, float] = {}
        for i in range(20_000):
            table[i % 997] = table.get(i % 997, 0.0) + 0.5 * i
        for _ in range(20):
            np.sqrt(numbers * numbers + 1.0).sum()

    return call


def find(words: list[str]) -> list[Benchmark]:
    """The benchmarks of every bench_*.py, in order, whose name holds one of the words (or all, without words)."""
    found: list[Benchmark] = []
    for file in sorted(HERE.glob("bench_*.py")):
        found += importlib.import_module(f"benchmarks.{file.stem}").BENCHMARKS
    return [bench for bench in found if not words or any(word in bench.name for word in words)]


def row(bench: Benchmark, reference_s: float) -> dict[str, float | str]:
    """One result: seconds, its ratio to the reference, and to the target (below 1 is within it)."""
    seconds = best_s(bench.prepare(), calls=bench.calls)
    result: dict[str, float | str] = {"name": bench.name, "cpu_s": seconds, "over_reference": seconds / reference_s}
    if bench.target_s:
        result["over_target"] = seconds / bench.target_s
    if bench.work:
        result |= {"rate_per_s": bench.work / seconds, "unit": bench.unit}
    return result


def line(result: dict[str, float | str]) -> str:
    """One result as a line of the table."""
    target = f"{result['over_target']:10.2f}" if "over_target" in result else " " * 10
    rate = f"  {result['rate_per_s']:14,.0f} {result['unit']}/s" if "unit" in result else ""
    return f"{result['name']:<44}{float(result['cpu_s']) * 1e3:12.3f}{result['over_reference']:14.3f}{target}{rate}"


def main() -> int:
    """Run, print, and write what was asked for; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description="Benchmarks as ratios on this machine.")
    parser.add_argument("words", nargs="*", help="only benchmarks whose name holds one of these")
    parser.add_argument("--json", type=Path, help="also write the results here")
    asked = parser.parse_args()
    benches = find(asked.words)
    if not benches:
        print(f"no benchmark's name holds any of {asked.words}", file=sys.stderr)
        return 2
    reference_s = best_s(reference())
    print(f"{'benchmark':<44}{'CPU ms':>12}{'/ reference':>14}{'/ target':>10}  rate")
    print(line({"name": "reference", "cpu_s": reference_s, "over_reference": 1.0}))
    results = []
    for bench in benches:
        results.append(row(bench, reference_s))
        print(line(results[-1]), flush=True)
    if asked.json:
        document = {"reference_s": reference_s, "results": results}
        asked.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    missed = [result["name"] for result in results if float(result.get("over_target", 0.0)) > 1.0]
    if missed:
        print(f"over target: {', '.join(map(str, missed))}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
