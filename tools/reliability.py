"""Every figure of reliability, measured and written into validation/RELIABILITY.md: `make reliability`.

    python tools/reliability.py [--kills 100] [--runs 50] [--base COMMIT] [--only WORD ...]

A figure that could not be measured says so and why. `--only` measures some of them anew; the others keep their value
with the day and the commit of their own (validation/reliability.json), as the mutation scores do (tools/mutation.py).
All of it takes about an hour on two cores, and five minutes more for each of the --runs.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools import mutation_score
from tools.reliability_properties import property_lines

OUT = ROOT / "validation" / "RELIABILITY.md"
KEPT = ROOT / "validation" / "reliability.json"
PYTHON = sys.executable


@dataclass(frozen=True)
class Figure:
    """One line of the report."""

    name: str
    target: str
    measured: str
    how: str


def run(*command: str, timeout_s: float = 3600.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in the checkout, its output as text."""
    return subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def document(*command: str) -> Any:
    """The JSON that a command prints, or what it said instead."""
    done = run(*command)
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {"error": (done.stderr or done.stdout).strip()[-300:]}


def saved_or(saved: Path | None, *command: str) -> Any:
    """What a tool printed earlier into a file, or what it prints now."""
    return json.loads(saved.read_text(encoding="utf-8")) if saved else document(*command)


def bad_inputs(options: argparse.Namespace) -> list[Figure]:
    found = saved_or(options.bad_inputs, PYTHON, "tools/bad_inputs.py")
    how = "tools/bad_inputs.py"
    if "error" in found:
        return [Figure("bad inputs", "0 answered badly", f"not measured: {found['error']}", how)]
    codes = ", ".join(f"{count:,} exit {code}" for code, count in found["by_exit_code"].items())
    return [
        Figure("bad inputs tried / answered badly", ">= 2,000 / 0",
               f"{found['inputs']:,} / {found['answered_badly']} ({codes})", how),
        Figure("slowest of them / most memory", "<= 2 s / <= 512 MiB",
               f"{found['slowest_cpu_s']} s of CPU / {found['peak_mib']} MiB (whole process)", how),
    ]  # fmt: skip


def messages(_: argparse.Namespace) -> list[Figure]:
    """Of misspelt keys in good files: how many errors name file and line, and how many the right key."""
    from tools.bad_inputs import answer, corpus

    with tempfile.TemporaryDirectory() as name:
        cases = [case for case in corpus(Path(name)) if case.name.endswith("misspelt")]
        refused = [outcome for outcome in map(answer, cases) if outcome.code == 2]
    lines = sum(1 for outcome in refused if re.search(r"\.toml:\d+:", outcome.said))
    hints = sum(1 for outcome in refused if "Did you mean" in outcome.said)
    return [Figure("misspelt keys: errors with file:line / with a suggestion", ">= 95 %",
                   f"{lines} / {hints} of {len(refused)}", "tools/bad_inputs.py, cases `misspelt`")]  # fmt: skip


def kills(options: argparse.Namespace) -> list[Figure]:
    found = saved_or(options.chaos, PYTHON, "tools/chaos.py", "--kills", str(options.kills))
    if "error" in found:
        said = f"not measured: {found['error']}"
        return [Figure("SIGKILL resumes without loss", "100 of 100", said, "tools/chaos.py")]
    same = "same bytes" if found["same_bytes"] else "OTHER BYTES"
    return [
        Figure("SIGKILL resumes without loss", "100 of 100",
               f"{found['kills']} kills, {found['committed_rows_lost']} rows lost, {same} as undisturbed",
               f"tools/chaos.py on {found['rows']:,} points, seed {found['seed']}"),
        Figure("10,000 estimates on 2 cores", "<= 60 s", f"{found['undisturbed_s']} s for {found['rows']:,}",
               "the undisturbed sweep of tools/chaos.py, wall clock of this machine as loaded as it was"),
    ]  # fmt: skip


def determinism(_: argparse.Namespace) -> list[Figure]:
    """One sweep under three hash seeds and two numbers of workers."""
    digests = set()
    with tempfile.TemporaryDirectory() as name:
        for seed in ("0", "1", "2"):
            for workers in ("0", "2"):
                out = Path(name) / f"{seed}-{workers}"
                run(PYTHON, "-m", "simulator", "sweep", "examples/sweep_nvlink.toml", "--out", str(out), "--workers",
                    workers, PYTHONHASHSEED=seed)  # fmt: skip
                table = out / "results.csv"
                digests.add(hashlib.sha256(table.read_bytes()).hexdigest() if table.exists() else "missing")
    same = len(digests) == 1 and "missing" not in digests
    measured = "same bytes" if same else f"{len(digests)} different tables"
    return [Figure("determinism", "same bytes, 3 hash seeds x 2 workers", measured, "examples/sweep_nvlink.toml")]


def pytest_summary(*places: str) -> tuple[int, int]:
    """Tests passed and failed in these places."""
    done = run(PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *places)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    numbers = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error)", last)}
    return numbers.get("passed", 0), numbers.get("failed", 0) + numbers.get("error", 0)


def anchors(_: argparse.Namespace) -> list[Figure]:
    passed, failed = pytest_summary("tests/published")
    closed, broken = pytest_summary("tests/properties/test_schedule_properties.py", "tests/unit/schedule")
    return [
        Figure("published anchors within their band", "all of >= 30", f"{passed} of {passed + failed}",
               "tests/published"),
        Figure("closed forms and engine agree", "<= 1e-9", f"{closed} tests pass, {broken} fail",
               "tests/properties/test_schedule_properties.py, tests/unit/schedule"),
    ]  # fmt: skip


def counts(_: argparse.Namespace) -> list[Figure]:
    """Properties and oracles, counted in the source of the tests."""
    properties = 0
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                properties += any("given" in ast.unparse(decorator) for decorator in node.decorator_list)
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    names = ("torch", "networkx", "scipy", "simpy", "pint", "transformers", "pandas", "dask", "distributed", "csv")
    used = r"^\s*(import|from) {0}\b|importorskip\(\"{0}"
    oracles = [name for name in names if re.search(used.replace("{0}", name), text, re.MULTILINE)]
    return [
        Figure("properties", ">= 60", str(properties),
               "tests with @given, 25 to 200 examples each (20,000 at night where no number is set)"),
        Figure("independent oracles", ">= 8",
               f"{len(oracles)} programs ({', '.join(oracles)}), closed forms, hand counts", "imports of the tests"),
    ]  # fmt: skip


def mutation(_: argparse.Namespace) -> list[Figure]:
    """The score of the files that were mutated whole, and the estimate from samples of the others."""
    return [Figure("mutation score", ">= 95 % on arch, cluster, parallel, schedule, units", mutation_score.measured(),
                   "tools/mutation.py: every mutant, or a sample; tables below")]  # fmt: skip


def coverage(_: argparse.Namespace) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        data, report = Path(name) / "data", Path(name) / "coverage.json"
        started = time.monotonic()
        done = run(PYTHON, "-m", "coverage", "run", f"--data-file={data}", "-m", "pytest", "-q", "-p",
                   "no:cacheprovider", timeout_s=7200)  # fmt: skip
        wall_s = time.monotonic() - started
        run(PYTHON, "-m", "coverage", "json", f"--data-file={data}", "-o", str(report))
        totals = json.loads(report.read_text(encoding="utf-8"))["totals"] if report.exists() else None
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "no output"
    lines = "not measured" if totals is None else (
        f"{totals['covered_lines'] / totals['num_statements']:.1%} / "
        f"{totals['covered_branches'] / max(totals['num_branches'], 1):.1%}"
    )  # fmt: skip
    return [
        Figure("line / branch coverage of simulator/", "100 % / >= 98 %", lines, "coverage over the whole suite"),
        Figure("whole suite, under coverage", "<= 30 min", f"{wall_s / 60:.1f} min: {summary}", "pytest"),
    ]


def gate(options: argparse.Namespace) -> list[Figure]:
    target = "0 without an entry in CHANGELOG.md"
    if not options.base:
        return [Figure("predictions changed", target, "not measured: no --base given", "tools/numbers_gate.py")]
    found = saved_or(options.gate, PYTHON, "tools/numbers_gate.py", options.base, str(ROOT))
    if "error" in found:
        return [Figure("predictions changed", target, f"not measured: {found['error']}", "tools/numbers_gate.py")]
    said = "acknowledged" if found["acknowledged"] else "NOT acknowledged"
    return [Figure("predictions changed", target, f"{found['changed']} numbers and {found['status']} statuses of "
                   f"{found['points']:,} points, {said}", f"tools/numbers_gate.py {options.base} .")]  # fmt: skip


def dependencies(_: argparse.Namespace) -> list[Figure]:
    done = run(PYTHON, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off", "--format", "json")
    try:
        found = json.loads(done.stdout)["dependencies"]
        bad = [f"{entry['name']} {entry['version']}" for entry in found if entry.get("vulns")]
        measured = f"{len(bad)} of {len(found)} installed packages" + (f": {', '.join(bad)}" if bad else "")
    except (ValueError, KeyError):
        measured = f"not measured: {(done.stderr.strip().splitlines() or ['pip-audit said nothing'])[-1][:200]}"
    return [Figure("known vulnerabilities in dependencies", "0", measured, "pip-audit")]


def wheels(_: argparse.Namespace) -> list[Figure]:
    digests = set()
    with tempfile.TemporaryDirectory() as name:
        for attempt in ("one", "two"):
            run(PYTHON, "-m", "hatchling", "build", "-t", "wheel", "-d", str(Path(name) / attempt))
            digests |= {hashlib.sha256(file.read_bytes()).hexdigest() for file in (Path(name) / attempt).glob("*.whl")}
    measured = {0: "not measured: no wheel was built", 1: "same bytes"}.get(len(digests), "DIFFERENT bytes")
    return [Figure("reproducible wheel", "two builds, same bytes", measured, "hatchling build")]


def speed(_: argparse.Namespace) -> list[Figure]:
    code = (
        "import time, resource, simulator as sim\n"
        "m, c = sim.load_model('gpt3-175b'), sim.load_cluster('dgx-a100', nodes=128)\n"
        "r, s = sim.Run(global_batch=1536), sim.Strategy(tp=8, pp=8, dp=16)\n"
        "sim.estimate(m, c, r, s); t = time.process_time()\n"
        "for _ in range(20): sim.estimate(m, c, r, s)\n"
        "print((time.process_time() - t) / 20)\n"
    )
    one = run(PYTHON, "-c", code).stdout.strip()
    usage = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=-3, stderr=-3)\n"
        "u = resource.getrusage(resource.RUSAGE_CHILDREN); print(u.ru_utime + u.ru_stime, u.ru_maxrss / 1024)\n"
    )
    shown = run(PYTHON, "-c", usage, PYTHON, "-m", "simulator", "--help").stdout.split()
    planned = run(PYTHON, "-c", usage, PYTHON, "-m", "simulator", "plan", "gpt3-175b", "dgx-a100", "--nodes", "512",
                  "--global-batch", "1536", "--json").stdout.split()  # fmt: skip
    return [
        Figure("one estimate (GPT-3 175B, 1,024 devices)", "<= 5 ms", f"{1e3 * float(one or 'nan'):.2f} ms of CPU",
               "mean of 20; `make bench` compares with a reference"),
        Figure("`shardwise --help`", "<= 250 ms", f"{1e3 * float(shown[0]):.0f} ms of CPU", "child process"),
        Figure("plan of GPT-3 175B on 4,096 devices", "<= 5 s, <= 1 GiB",
               f"{float(planned[0]):.1f} s of CPU, {float(planned[1]):.0f} MiB", "child process, start included"),
    ]  # fmt: skip


def repeats(options: argparse.Namespace) -> list[Figure]:
    """Unit and property tests again and again, each time with other hashes: what fails only sometimes is flaky."""
    failed: Counter[str] = Counter()
    quickest_s = float("inf")
    for seed in range(options.runs):
        started = time.monotonic()
        done = run(PYTHON, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "tests/unit", "tests/properties",
                   PYTHONHASHSEED=str(seed))  # fmt: skip
        quickest_s = min(quickest_s, time.monotonic() - started)
        failed.update(re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE))
    flaky = sorted(name for name, times in failed.items() if times < options.runs)
    return [
        Figure("flaky tests", "0 in 50 runs", f"{len(flaky)} in {options.runs} runs {' '.join(flaky)}".strip(),
               "unit and property tests with other hash seeds, --runs; all of them run in each change's checks"),
        Figure("unit and property tests", "<= 5 min", f"{quickest_s / 60:.1f} min", "the quickest of those runs"),
    ]  # fmt: skip


def measured_runs(_: argparse.Namespace) -> list[Figure]:
    """Every set of our own steps, by its own calibration (simulator/measure/sets.py)."""
    from simulator.measure.sets import read_sets

    said = []
    for each in read_sets(ROOT / "validation" / "measured"):
        errors = sorted(abs(entry.error) for entry in each.scored)
        ninth = errors[int(0.9 * (len(errors) - 1))]
        tau = each.summary["order"]["tau"]
        said.append(f"{each.name}: {statistics.median(errors):.1%} / {ninth:.1%}, {tau:.2f}")
    return [Figure("measured torch runs: median / p90 error; tau of pairs that differ by more than their spread",
                   "<= 10 % / <= 25 %; >= 0.9", "; ".join(said) or "not measured: there are no sets",
                   "make validate-measured; measured/README.md says when the machine was quiet")]  # fmt: skip


PARTS: dict[str, Callable[[argparse.Namespace], list[Figure]]] = {
    "bad": bad_inputs, "messages": messages, "kills": kills, "determinism": determinism, "anchors": anchors,
    "counts": counts, "mutation": mutation, "coverage": coverage, "gate": gate, "dependencies": dependencies,
    "wheels": wheels, "speed": speed, "repeats": repeats, "measured": measured_runs,
}  # fmt: skip


def written(kept: dict[str, Any]) -> str:
    """The report."""
    lines = [
        "# Reliability",
        "",
        f"Written by `make reliability`: Python {platform.python_version()}, {os.cpu_count()} cores. A figure that was",
        "not measured says why; each stands beside the commit that it was measured at.",
        "",
        "| figure | target | measured | how | at |",
        "|---|---|---|---|---|",
    ]
    for name in PARTS:
        if name not in kept:
            lines.append(f"| {name} |  | not measured yet | `tools/reliability.py --only {name}` |  |")
            continue
        at = f"{kept[name]['date']} {kept[name]['commit']}"
        lines += [f"| {' | '.join(figure)} | {at} |".replace("\n", " ") for figure in kept[name]["figures"]]
    return "\n".join([*lines, "", *mutation_score.table_lines(), "", *property_lines(), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--runs", type=int, default=50, help="of the tests that flaky ones are looked for in")
    parser.add_argument("--base", default="", help="commit or folder that predictions are compared with")
    parser.add_argument("--bad-inputs", type=Path, help="what tools/bad_inputs.py printed, instead of running it")
    parser.add_argument("--chaos", type=Path, help="what tools/chaos.py printed, instead of running it")
    parser.add_argument("--gate", type=Path, help="what tools/numbers_gate.py printed, instead of running it")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    commit = run("git", "rev-parse", "--short", "HEAD").stdout.strip() or "unknown"
    for name in options.only:
        started = time.monotonic()
        figures = PARTS[name](options)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        kept[name] = {"date": date.today().isoformat(), "commit": commit, "figures": [astuple(f) for f in figures]}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    text = written(kept)
    OUT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
