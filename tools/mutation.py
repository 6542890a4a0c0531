"""Mutation testing of the physics: does a test fail when one piece of a formula is another?

    python tools/mutation.py FILE.py ... [--tests PLACE ...] [--budget 12] [--children 1] [--again] [--out FILE.json]

Every mutant of every function of the files (mutmut's own operators: a sign, a constant, a comparison, an argument, a
text, ...) runs in a forked child of one warm pytest session. The child gives the function its mutated code, empties
every cache, and runs the tests that reach the function (recorded once, unmutated), quickest first, until one fails or
`--budget` seconds of tests (processor time) have passed. Whole files only, no samples. The result of each file is put
into validation/mutation.json; a survivor keeps the reason that was written beside it there. `--again` runs only those
that survived there, with other tests or a larger budget, and takes the rest as killed: of code that did not change.

Left out: texts of error messages (golden texts hold the important ones), mutants whose bytecode is the original's, and
what runs at import (constants and tables; catalogues have their own tests).
"""

from __future__ import annotations
import __future__

import argparse
import contextlib
import difflib
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import libcst as cst
import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "validation" / "mutation.json"
UNEXPLAINED = "not yet explained"
MESSAGES = {"add", "require", "Problem", "InputError", "Infeasible", "did_you_mean"}
"""Calls whose texts are error messages."""
TESTS = {
    "arch": ("tests/unit/arch", "tests/unit/parallel", "tests/published/test_korthikanti_memory.py",
             "tests/published/test_parameter_counts.py", "tests/properties/test_broadcasting.py"),
    "cluster": ("tests/unit/cluster", "tests/properties/test_network_graphs.py",
                "tests/properties/test_network_properties.py", "tests/properties/test_network_links.py",
                "tests/properties/test_kernel_properties.py", "tests/published/test_network_published.py"),
    "parallel": ("tests/unit/parallel", "tests/unit/arch", "tests/published/test_korthikanti_memory.py",
                 "tests/properties/test_broadcasting.py", "tests/properties/test_estimate_properties.py"),
    "schedule": ("tests/unit/schedule", "tests/properties/test_schedule_properties.py",
                 "tests/properties/test_steady_properties.py", "tests/oracles/test_schedule_simpy.py",
                 "tests/oracles/test_schedule_published.py"),
    "simulator": ("tests/unit/test_units.py", "tests/unit/test_numbers.py"),
}  # fmt: skip
"""Tests by the folder of the mutated file: its own, and the properties and published tables that rest on it."""


@dataclass
class Mutant:
    """One changed function: its name in the module, the lines that differ, and the code that it gets."""

    function: str
    change: str
    source: str


@dataclass
class Result:
    """What became of the mutants of one file."""

    mutants: list[Mutant] = field(default_factory=list)
    status: list[str] = field(default_factory=list)


def mutants_of(path: Path) -> list[Mutant]:
    """Every mutant of every function of a file, messages and equal code left out."""
    from mutmut.mutation.file_mutation import create_mutations

    text = path.read_text(encoding="utf-8")
    module, mutations, _, _ = create_mutations(str(path), text)
    names = dict(_functions(module.body, ""))
    parents: dict[cst.FunctionDef, dict[int, Any]] = {}
    found = []
    for mutation in mutations:
        node = mutation.contained_by_top_level_function
        if node is None or node not in names:
            continue
        above = parents.setdefault(node, dict(_parents(node)))
        if _is_message(mutation.original_node, above):
            continue
        changed = node.deep_replace(mutation.original_node, mutation.mutated_node)
        before, after = _text(node), _text(changed)
        if _code(before, names[node]) == _code(after, names[node]):
            continue
        found.append(Mutant(names[node], _difference(before, after), after))
    return found


def _functions(body: Any, inside: str) -> Iterator[tuple[Any, str]]:
    for node in body:
        if isinstance(node, cst.FunctionDef):
            yield node, f"{inside}{node.name.value}"
        elif isinstance(node, cst.ClassDef):
            yield from _functions(node.body.body, f"{inside}{node.name.value}.")


def _parents(node: Any) -> Iterator[tuple[int, Any]]:
    for child in node.children:
        yield id(child), node
        yield from _parents(child)


def _is_message(node: Any, above: dict[int, Any]) -> bool:
    """Whether a text is (part of) what an error says."""
    if isinstance(node, cst.Call) and _called(node) in {"Problem", "InputError", "Infeasible"}:
        return True
    if not isinstance(node, cst.SimpleString | cst.ConcatenatedString | cst.FormattedString | cst.FormattedStringText):
        return False
    while id(node) in above:
        node = above[id(node)]
        if isinstance(node, cst.Raise) or (isinstance(node, cst.Call) and _called(node) in MESSAGES):
            return True
    return False


def _called(call: cst.Call) -> str:
    function = call.func
    return function.attr.value if isinstance(function, cst.Attribute) else getattr(function, "value", "")


def _text(function: cst.FunctionDef) -> str:
    return cst.Module([function.with_changes(decorators=[], leading_lines=[])]).code


def _code(source: str, name: str) -> Any:
    """What tells two functions apart: their code, all the way down."""
    code = compile(source, "<mutant>", "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)

    def plain(value: Any) -> Any:
        if not isinstance(value, types.CodeType):
            return repr(value)
        return value.co_code, value.co_names, value.co_varnames, value.co_freevars, tuple(map(plain, value.co_consts))

    return name, plain(code)


def _difference(before: str, after: str) -> str:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    kept = [line[:2] + line[2:].strip() for line in lines if line[:2] in {"- ", "+ "}]
    old, new = ("; ".join(line[2:] for line in kept if line[0] == sign) for sign in "-+")
    return f"{old} => {new}"[:300]


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
    """Give the function its mutated code, wherever it was imported to."""
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
    """Forget what cached functions of the package have answered."""
    for cached in _cached():
        cached.cache_clear()


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

    def __init__(
        self, files: list[Path], budget_s: float, children: int, left: dict[str, set[tuple[str, str]]] | None
    ) -> None:
        self.files, self.budget_s, self.children, self.left = files, budget_s, children, left
        self.seconds: dict[Any, float] = {}
        self.reached: dict[tuple[str, str], list[Any]] = defaultdict(list)
        self.results: dict[str, Result] = {}

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
        wanted = {str(file.resolve()) for file in self.files}
        for item, following in zip(items, [*items[1:], None], strict=True):
            seen: set[Any] = set()

            def note(frame: Any, event: str, _: Any, seen: set[Any] = seen) -> None:
                if event == "call" and frame.f_code.co_filename in wanted:
                    seen.add(frame.f_code)

            empty_caches()
            # Processor time: how long it takes on a machine that others use says nothing about the test.
            started = time.process_time()
            sys.setprofile(note)
            reports = runtestprotocol(item, log=False, nextitem=following)
            sys.setprofile(None)
            self.seconds[item] = time.process_time() - started
            bad = [report for report in reports if report.failed]
            if bad:
                print(f"left out, it fails unmutated: {item.nodeid}\n{bad[0].longreprtext[-500:]}", file=sys.stderr)
                continue
            for key in {(code.co_filename, code.co_qualname) for code in seen}:
                self.reached[key].append(item)

    def tests_of(self, file: Path, function: str) -> list[Any]:
        """The tests that reach a function, quickest first, within the budget."""
        chosen, spent = [], 0.0
        for item in sorted(self.reached[str(file.resolve()), function], key=self.seconds.__getitem__):
            spent += self.seconds[item]
            if spent > self.budget_s and chosen:
                break
            chosen.append(item)
        return chosen

    def _mutate(self, file: Path) -> None:
        module = importlib.import_module(".".join(file.resolve().relative_to(ROOT).with_suffix("").parts))
        result = self.results[str(file.resolve().relative_to(ROOT))] = Result()
        result.mutants = mutants_of(file)
        started, running = time.monotonic(), {}
        result.status = ["untested"] * len(result.mutants)
        left = None if self.left is None else self.left.get(str(file.resolve().relative_to(ROOT)), set())
        for index, mutant in enumerate(result.mutants):
            if left is not None and (mutant.function, mutant.change) not in left:
                result.status[index] = "killed"
                continue
            items = self.tests_of(file, mutant.function)
            if items and live(module, mutant.function):
                running[self._child(module, mutant, items)] = index
            while len(running) >= self.children:
                self._reap(running, result)
        while running:
            self._reap(running, result)
        counts = dict(Counter(result.status))
        print(f"{file}: {len(result.mutants)} {counts} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    @staticmethod
    def _reap(running: dict[int, int], result: Result) -> None:
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        words = {0: "survived", 1: "killed", -signal.SIGALRM: "timeout"}
        result.status[running.pop(pid)] = words.get(code, "killed")

    def _child(self, module: types.ModuleType, mutant: Mutant, items: list[Any]) -> int:
        pid = os.fork()
        if pid:
            return pid
        with contextlib.suppress(BaseException):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            signal.alarm(int(30 + 20 * sum(self.seconds[item] for item in items)))
            os._exit(1 if self._fails(module, mutant, items) else 0)
        os._exit(1)

    @staticmethod
    def _fails(module: types.ModuleType, mutant: Mutant, items: list[Any]) -> bool:
        patch(module, mutant)
        for item, following in zip(items, [*items[1:], None], strict=True):
            empty_caches()
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                return True
        return False


def written(results: dict[str, Result], tests: list[str], out: Path, *, again: bool) -> None:
    """Put the files' results among those of other files."""
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    files = found.get("files", {})
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=False, capture_output=True,
                            text=True).stdout.strip()  # fmt: skip
    for name, result in results.items():
        reasons = {(s["function"], s["change"]): s["reason"] for s in files.get(name, {}).get("survivors", [])}
        counts = Counter(result.status)
        left = [(m, status) for m, status in zip(result.mutants, result.status, strict=True)
                if status in {"survived", "untested"}]  # fmt: skip
        tests = list(dict.fromkeys([*(files.get(name, {}).get("tests", []) if again else []), *tests]))
        files[name] = {
            "date": date.today().isoformat(), "commit": commit, "mutants": len(result.mutants),
            "killed": counts["killed"] + counts["timeout"], "timeout": counts["timeout"],
            "untested": counts["untested"], "tests": tests,
            "survivors": [{"function": m.function, "change": m.change, "status": status,
                           "reason": reasons.get((m.function, m.change), UNEXPLAINED)} for m, status in left],
        }  # fmt: skip
    out.write_text(json.dumps({"files": dict(sorted(files.items()))}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tests", nargs="+", help="places of tests (those of the files' folder otherwise)")
    parser.add_argument("--budget", type=float, default=12.0, help="seconds of processor time for one mutant's tests")
    parser.add_argument("--children", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="only what survived in the --out file")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    folders = dict.fromkeys(file.resolve().parent.name for file in options.files)
    tests = options.tests or list(dict.fromkeys(place for folder in folders for place in TESTS[folder]))
    os.environ["HYPOTHESIS_PROFILE"] = "default"
    left = None
    if options.again:
        known = json.loads(options.out.read_text(encoding="utf-8"))["files"]
        left = {name: {(s["function"], s["change"]) for s in entry["survivors"]} for name, entry in known.items()}
    mutator = Mutator(options.files, options.budget, options.children, left)

    os.chdir(ROOT)
    pytest.main(["-q", "-s", "-p", "no:cacheprovider", *tests], plugins=[mutator])
    written(mutator.results, tests, options.out, again=options.again)


if __name__ == "__main__":
    main()
