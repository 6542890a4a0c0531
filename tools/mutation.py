"""Mutation testing of the physics: does a test fail when one piece of a formula is another?

    python tools/mutation.py FILE.py ... [--sample N --seed S] [--tests PLACE ...] [--budget 12] [--children 1]
                                         [--again] [--out FILE.json]

Every mutant of every function of the files (mutmut's own operators: a sign, a constant, a comparison, an argument, a
text, ...) runs in a forked child of one warm pytest session. The child gives the function its mutated code, empties
every cache, and runs the tests that reach the function (recorded once, unmutated) until one fails or `--budget` seconds
of tests (processor time) have passed: those of the file's own test modules first, quickest first. The result of each
file is put into validation/mutation.json with the digest of the code that it holds for; a survivor keeps the reason
that was written beside it there. `--again` runs only those that survived there, with other tests or a larger budget,
and takes the rest as killed; code that changed since is left out.

`--sample N` draws N mutants of each file at random instead (by `--seed`: the same ones for the same code). These
results stand apart, and a file that was mutated whole leaves them. Tests that were written for the survivors of a draw
make that draw a poor estimate: draw again with another seed.

Left out: texts of error messages (golden texts hold the important ones), mutants whose bytecode is the original's, and
what runs at import (constants and tables; catalogues have their own tests).
"""

from __future__ import annotations
import __future__

import argparse
import contextlib
import functools
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import types
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.mutants import Mutant, mutants_of
from tools.mutation_score import UNEXPLAINED, content, drawn

OUT = ROOT / "validation" / "mutation.json"
KEPT = {"simulator.schedule.make": "RECENT", "simulator.schedule.wiring": "_WIRINGS",
        "simulator.cluster.network": "_curves", "simulator.cluster.graph": "_ways"}  # fmt: skip
"""What the package remembers besides cached functions, by module."""
MEMORY_BYTES = 6 << 30
"""Address space of a child: a mutated loop that only collects ends by it."""
TESTS = {
    "arch": ("simulator/arch", "tests/unit/arch", "tests/unit/parallel", "tests/published/test_korthikanti_memory.py",
             "tests/published/test_parameter_counts.py", "tests/properties/test_broadcasting.py"),
    "cluster": ("simulator/cluster", "tests/unit/cluster", "tests/properties/test_network_graphs.py",
                "tests/properties/test_network_properties.py", "tests/properties/test_network_links.py",
                "tests/properties/test_kernel_properties.py", "tests/published/test_network_published.py",
                "tests/unit/calibrate", "tests/unit/report/test_network_report.py",
                "tests/unit/report/test_unequal_network.py"),
    "parallel": ("simulator/parallel", "tests/unit/parallel", "tests/unit/arch", "tests/unit/test_breakdown.py",
                 "tests/published/test_korthikanti_memory.py", "tests/properties/test_broadcasting.py",
                 "tests/properties/test_estimate_properties.py", "tests/unit/test_unequal.py",
                 "tests/oracles/test_torch_peak.py"),
    "schedule": ("simulator/schedule", "tests/unit/schedule", "tests/properties/test_schedule_properties.py",
                 "tests/properties/test_steady_properties.py", "tests/oracles/test_schedule_simpy.py",
                 "tests/oracles/test_schedule_published.py"),
    "simulator": ("tests/unit/test_units.py", "tests/unit/test_numbers.py"),
}  # fmt: skip
"""Tests by the folder of the mutated file: its own, its examples, and the properties and published tables on it."""


@dataclass
class Result:
    """What became of the mutants of one file, of how many they are, and what the file held."""

    of: int
    content: str
    mutants: list[Mutant] = field(default_factory=list)
    status: list[str] = field(default_factory=list)


def live(module: types.ModuleType, name: str) -> types.FunctionType | None:
    """The function object that a dotted name has in a module, out of its wrappers."""
    found: Any = module
    for part in name.split("."):
        found = vars(found).get(part)
        if found is None:
            return None
    for attribute in ("fget", "func", "__func__"):
        found = getattr(found, attribute, found) if not isinstance(found, types.FunctionType) else found
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return found if isinstance(found, types.FunctionType) else None


def patch(module: types.ModuleType, mutant: Mutant) -> None:
    """Give the function its mutated code, wherever it was imported to; a ValueError where that cannot be done."""
    function = live(module, mutant.function)
    assert function is not None, mutant.function
    space = dict(vars(module))
    flags = __future__.annotations.compiler_flag
    exec(compile(mutant.source, module.__file__ or "", "exec", flags=flags, dont_inherit=True), space)
    changed = space[mutant.function.rpartition(".")[2]]
    if function.__code__.co_freevars != changed.__code__.co_freevars:
        raise ValueError(f"{mutant.function} is a closure: it cannot be patched in place")
    function.__code__ = changed.__code__
    function.__defaults__, function.__kwdefaults__ = changed.__defaults__, changed.__kwdefaults__


def empty_caches() -> None:
    """Forget what cached functions of the package have answered, and what it keeps besides."""
    for cached in _cached():
        cached.cache_clear()
    for name, kept in KEPT.items():
        if name in sys.modules:
            getattr(sys.modules[name], kept).clear()


@functools.cache
def _cached() -> tuple[Any, ...]:
    found: dict[int, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "simulator" or name.startswith("simulator.catalog"):
            continue
        for value in list(vars(module).values()):
            members = [value, *(vars(value).values() if isinstance(value, type) else ())]
            found.update({id(each): each for each in members if hasattr(each, "cache_clear")})
    return tuple(found.values())


class Mutator:
    """A pytest plugin whose session runs the tests once, and then the tests of every mutant."""

    def __init__(self, options: argparse.Namespace, known: dict[str, Any] | None) -> None:
        self.options, self.known = options, known or {}
        self.left = None if known is None else {
            name: {(s["function"], s["change"]) for s in entry["survivors"]} for name, entry in known.items()}
        self.files: list[Path] = [file.resolve() for file in options.files]
        self.contents = {file: content(file) for file in self.files}
        self.seconds: dict[Any, float] = {}
        self.reached: dict[tuple[str, str], list[Any]] = defaultdict(list)

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        # A mutant need not be killed by the smallest example.
        settings.register_profile("mutants", parent=settings(), phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("tests cannot be collected")
        self._record(session.items)
        gc.collect()
        gc.freeze()
        for file in self.files:
            self._mutate(file)
        return True

    def _record(self, items: list[Any]) -> None:
        wanted = {str(file) for file in self.files}
        for item, following in zip(items, [*items[1:], None], strict=True):
            seen: set[Any] = set()

            def note(frame: Any, event: str, _: Any, seen: set[Any] = seen) -> None:
                if event == "call" and frame.f_code.co_filename in wanted:
                    seen.add(frame.f_code)

            empty_caches()
            # The runner of examples empties their names: with none left, a second run fails whatever the code.
            names = dict(item.dtest.globs) if hasattr(item, "dtest") else {}
            # Processor time: how long it takes on a machine that others use says nothing about the test.
            started = time.process_time()
            sys.settrace(note)
            reports = runtestprotocol(item, log=False, nextitem=following)
            sys.settrace(None)
            self.seconds[item] = time.process_time() - started
            if names:
                item.dtest.globs.update(names)
            bad = [report for report in reports if report.failed]
            if bad:
                print(f"left out, it fails unmutated: {item.nodeid}\n{bad[0].longreprtext[-500:]}", file=sys.stderr)
                continue
            for key in {(code.co_filename, code.co_qualname) for code in seen}:
                self.reached[key].append(item)

    def tests_of(self, file: Path, function: str) -> list[Any]:
        """The tests that reach a function within the budget: of the file's own modules first, quickest first."""
        chosen, spent = [], 0.0

        def order(item: Any) -> tuple[bool, float]:
            return file.stem not in Path(item.fspath).stem, self.seconds[item]

        for item in sorted(self.reached[str(file), function], key=order):
            spent += self.seconds[item]
            if spent > self.options.budget and chosen:
                break
            chosen.append(item)
        return chosen

    def _mutate(self, file: Path) -> None:
        name, sample = str(file.relative_to(ROOT)), self.options.sample
        if sample and _content_of_whole(name, self.options.out) == self.contents[file]:
            print(f"{name}: left out, this code was mutated whole", file=sys.stderr, flush=True)
            return
        module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
        every = mutants_of(file)
        if content(file) != self.contents[file]:
            print(f"{name}: left out, it was changed meanwhile", file=sys.stderr, flush=True)
            return
        if self.left is not None and self.known.get(name, {}).get("content") != self.contents[file]:
            print(f"{name}: left out, changed since the run that --again takes up", file=sys.stderr, flush=True)
            return
        chosen = drawn(every, sample, self.options.seed, name) if sample else every
        result = Result(len(every), self.contents[file], chosen, ["untested"] * len(chosen))
        started, running = time.monotonic(), {}
        left = None if self.left is None else self.left.get(name, set())
        for index, mutant in enumerate(result.mutants):
            if left is not None and (mutant.function, mutant.change) not in left:
                result.status[index] = "killed"
                continue
            items = self.tests_of(file, mutant.function)
            if items and live(module, mutant.function):
                running[self._child(module, mutant, items)] = index
            while len(running) >= self.options.children:
                self._reap(running, result)
        while running:
            self._reap(running, result)
        counts = dict(Counter(result.status))
        print(f"{name}: {len(chosen)} of {len(every)} {counts} {time.monotonic() - started:.0f} s", file=sys.stderr,
              flush=True)  # fmt: skip
        written(name, result, self.options)

    @staticmethod
    def _reap(running: dict[int, int], result: Result) -> None:
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        words = {0: "survived", 1: "killed", 3: "untested", -signal.SIGALRM: "timeout", -signal.SIGXCPU: "timeout"}
        result.status[running.pop(pid)] = words.get(code, "killed")

    def _child(self, module: types.ModuleType, mutant: Mutant, items: list[Any]) -> int:
        pid = os.fork()
        if pid:
            return pid
        with contextlib.suppress(BaseException):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            cpu_s = int(10 + 5 * sum(self.seconds[item] for item in items))
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            signal.alarm(20 * cpu_s)
            os._exit(self._fails(module, mutant, items))
        os._exit(1)

    @staticmethod
    def _fails(module: types.ModuleType, mutant: Mutant, items: list[Any]) -> int:
        """1: a test fails; 0: none does; 3: the function cannot be given its code."""
        try:
            patch(module, mutant)
        except ValueError:
            return 3
        for item, following in zip(items, [*items[1:], None], strict=True):
            empty_caches()
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                return 1
        return 0


def written(name: str, result: Result, options: argparse.Namespace) -> None:
    """Put a file's result among those of other files, whole files and samples apart."""
    out: Path = options.out
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    files, samples = found.get("files", {}), found.get("samples", {})
    before = [place[name] for place in (files, samples) if name in place]
    reasons = {(s["function"], s["change"]): s["reason"] for entry in before for s in entry["survivors"]}
    counts = Counter(result.status)
    left = [(m, status) for m, status in zip(result.mutants, result.status, strict=True)
            if status in {"survived", "untested"}]  # fmt: skip
    known = [place for entry in before for place in entry["tests"]] if options.again else []
    entry = {
        "date": date.today().isoformat(), "commit": _commit(), "content": result.content,
        **({"of": result.of, "seed": options.seed} if options.sample else {}), "mutants": len(result.mutants),
        "killed": counts["killed"] + counts["timeout"], "timeout": counts["timeout"],
        "untested": counts["untested"], "tests": list(dict.fromkeys([*known, *options.tests])),
        "survivors": [{"function": m.function, "change": m.change, "status": status,
                       "reason": reasons.get((m.function, m.change), UNEXPLAINED)} for m, status in left],
    }  # fmt: skip
    # A file stands in one of the two tables.
    (samples if options.sample else files)[name] = entry
    (files if options.sample else samples).pop(name, None)
    kept = {"files": dict(sorted(files.items())), "samples": dict(sorted(samples.items()))}
    out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _content_of_whole(name: str, out: Path) -> str:
    """The digest of the code that was mutated whole; nothing where none was."""
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    return str(found.get("files", {}).get(name, {}).get("content", ""))


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="mutants drawn of each file (0: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--tests", nargs="+", help="places of tests (those of the files' folder otherwise)")
    parser.add_argument("--budget", type=float, default=12.0, help="seconds of processor time for one mutant's tests")
    parser.add_argument("--children", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="only what survived in the --out file")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    inside = [file.resolve().relative_to(ROOT).parts for file in options.files]
    folders = dict.fromkeys(parts[1] if len(parts) > 2 else parts[0] for parts in inside)
    options.tests = options.tests or list(dict.fromkeys(place for folder in folders for place in TESTS[folder]))
    options.out = options.out.resolve()
    os.environ["HYPOTHESIS_PROFILE"] = "default"
    known = None
    if options.again:
        known = json.loads(options.out.read_text(encoding="utf-8"))["samples" if options.sample else "files"]
    mutator = Mutator(options, known)

    os.chdir(ROOT)
    pytest.main(["-q", "-s", "-p", "no:cacheprovider", *options.tests], plugins=[mutator])


if __name__ == "__main__":
    main()
