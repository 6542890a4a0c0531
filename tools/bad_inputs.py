"""Bad inputs, curated and generated: each must get an answer or an error that says where, soon and in little memory.

    python tools/bad_inputs.py [--limit-s 2] [--limit-mib 512]

Runs every input and prints one JSON document. Exit 1 when one was answered badly: another exit
code than 0, 1 or 2, a traceback, a number that is not finite, an error without a place, more than the limits.
`tests/repo/test_hardening.py` runs every fourth of them.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import resource
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from simulator import cli

ESTIMATE = ("estimate", "gpt2-124m", "dgx-a100", "--nodes", "1", "--global-batch", "64")
NUMBERS = (
    "nodes", "tp", "pp", "dp", "cp", "ep", "etp", "vp", "zero", "shard-group", "micro-batch", "global-batch", "seq-len",
    "target-seq-len", "recompute-layers",
)  # fmt: skip
BAD_NUMBERS = (
    "0", "-1", "3", "7", "1000", "1000003", "999999999", "1000000000000000000", "1.5", "nan", "inf", "", "8x", "0x8",
    "1e3", "--tp", "\u0663", " ", "9" * 5000, "'; DROP TABLE points; --",
)  # fmt: skip
WORDS = (
    "schedule", "recompute", "precision", "optimizer", "framework", "attention", "context-kind", "order",
    "layers-per-stage", "strategy", "run",
)  # fmt: skip
BAD_WORDS = (
    "", "x", "1f1", "bf61", "adan", "megatron-cor", "tp-tp-tp", "12,,12", "-1,5", "1,2,x", "../../etc/passwd",
    "/etc/passwd", "C:\\windows", "<script>alert(1)</script>", "a" * 10_000, "\u202egpt", "NaN", "null",
    "${HOME}", "$(id)", "\n", "core_attn,nonsense", ",", "none,full",
)  # fmt: skip
BAD_NAMES = (
    "", "gpt3-175", "GPT3-175B", "../gpt3", "/etc/passwd", "gpt3/gpt3-175b", "gpt3-175b.toml", "./missing.toml", ".",
    "..", "con", "a" * 300, "\u00e9", "gpt 3", "-", "*", "%00", "models", "nothing.json", "~", "dgx-a10",
)  # fmt: skip
QUANTITIES = {
    "tokens": "count", "price": "price", "power": "power", "device-mtbf": "time", "detection": "time",
    "restart": "time", "storage": "bandwidth", "interval": "time", "repair": "time",
}  # fmt: skip
BAD_QUANTITIES = (
    "", "5", "-5 s", "5 parsecs", "nan s", "inf W", "1e400 B/s", "1e308 GB/s", "0", "0 s", "0 B/s", "0 USD/h", "1 s",
    "1e-300 s", "300B", "two", "1 " + "s" * 100, "1e9 d", "9" * 70, "1 EUR/h",
)  # fmt: skip
TEXTS: Mapping[str, bytes] = {
    "empty": b"", "blank": b"\n\n  \n", "comment": b"# nothing\n", "binary": bytes(range(256)), "nul": b"a = 1\0\n",
    "latin-1": b'title = "caf\xe9"\n', "bom": b'\xef\xbb\xbftitle = "x"\n', "crlf": b'title = "x"\r\ntitle = "y"\r\n',
    "not-toml": b"this is no TOML\n", "json": b'{"title": "x"}\n', "yaml": b"title: x\n- 1\n",
    "unclosed": b'title = "x\n',
    "twice": b"a = 1\na = 2\n", "deep": b"a = " + b"[" * 2000 + b"]" * 2000 + b"\n",
    "deep-inline": b"a = " + b"{a = " * 500 + b"1" + b"}" * 500 + b"\n",
    "dots": b".".join([b"a"] * 20_000) + b" = 1\n", "digits": b"tp = " + b"9" * 5000 + b"\n",
    "beyond-2-53": b"tp = 9007199254740993\n", "nan": b"tp = nan\n", "inf": b"tp = -inf\n", "1e400": b"tp = 1e400\n",
    "date": b"tp = 2026-01-01\n", "large": b"# " + b"x" * 300_000 + b"\n", "tables": b"[[tp]]\n[[tp]]\n",
    "long-key": b'"' + b"k" * 60_000 + b'" = 1\n', "escape": b'title = "\\u202e"\n', "html": b'title = "<script>"\n',
    "many-keys": b"".join(b"k%d = 1\n" % n for n in range(15_000)), "surrogate": b'title = "\\ud800"\n',
    "empty-key": b'"" = 1\n', "newline-key": b'"a\\nb" = 1\n', "proto": b'"__proto__" = 1\n"__class__" = 2\n',
}  # fmt: skip
VALUES: tuple[Any, ...] = (
    -1, 0, 7, 2**53, 1e300, 1.5, "", "x", "-1 GB/s", "1e400 GB/s", "\u202e", [], {}, True, ["x"], [[1]], {"x": {}},
)  # fmt: skip
"""What every key of a good file is replaced by, one at a time."""
CSVS: Mapping[str, bytes] = {
    "empty": b"", "binary": bytes(range(256)), "header-only": b"run_id\n", "unknown": b"run_id,colour\na,red\n",
    "ragged": b"run_id,source\na\nb,c,d,e\n", "quote": b'run_id,source\n"a,b\n', "nul": b"run_id\n\0\n",
    "wide": b",".join([b"c%d" % n for n in range(20_000)]) + b"\n", "latin-1": b"run_id\ncaf\xe9\n",
    "twice": b"run_id,run_id\na,b\n", "field": b"run_id\n" + b"x" * 200_000 + b"\n", "toml": b"[case]\na = 1\n",
}  # fmt: skip
STRATEGY = {
    "tp": 2, "pp": 1, "dp": 4, "micro_batch": 2, "zero": 1, "schedule": "1f1b", "order": ["tp", "cp", "ep", "dp", "pp"],
}  # fmt: skip
RUN = {"global_batch": 64, "seq_len": 512, "precision": "bf16", "optimizer": "adamw", "expert_imbalance": 1.0}
SWEEP = {
    "title": "x", "case": {"model": "gpt2-124m", "cluster": "dgx-a100", "nodes": 1, "price": "2 USD/h", "tokens": "1B"},
    "grid": {"tp": [1, 2], "global_batch": [8], "device.memory_bandwidth": ["x2"]}, "zip": [{"seq_len": [128]}],
}  # fmt: skip
GOOD_FILES = {
    "model": ("models/gpt2/gpt2-124m.toml", "models/mistral/mixtral-8x7b.toml", "models/deepseek/deepseek-v3.toml",
              "models/t5/t5-small.toml", "models/bert/bert-base.toml"),
    "cluster": ("hardware/clusters/dgx-a100.toml", "hardware/clusters/gb200-nvl72.toml",
                "hardware/clusters/tpu-v4-pod.toml"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One input: the command, and the words of which an error must name one."""

    name: str
    arguments: tuple[str, ...]
    about: tuple[str, ...]
    prepare: Callable[[], None] | None = None
    """Writes the file that the command reads."""


@dataclass(frozen=True)
class Outcome:
    """What came back."""

    case: Case
    code: int
    said: str
    fault: str
    """Empty when it was answered well."""


def corpus(folder: Path) -> list[Case]:
    """Every case; files are written into the folder, most of them when their case is run."""
    return [*_argument_cases(), *_file_cases(folder), *_changed_file_cases(folder)]


def _argument_cases() -> Iterator[Case]:
    for option in NUMBERS:
        for value in BAD_NUMBERS:
            yield _option_case(option, value)
    for option in WORDS:
        for value in BAD_WORDS:
            yield _option_case(option, value)
    for value in BAD_NAMES:
        shown = value.encode("ascii", "backslashreplace").decode()[:40]
        about = (shown, "TOML", "missing.toml")
        yield Case(f"model {value[:20]!r}", ("estimate", value, *ESTIMATE[2:]), (*about, "model"))
        yield Case(f"cluster {value[:20]!r}", (*ESTIMATE[:2], value, *ESTIMATE[3:]), (*about, "cluster"))
        yield Case(f"count {value[:20]!r}", ("count", value), (*about, "model", "MODEL"))
        yield Case(f"show {value[:20]!r}", ("catalog", "show", value), (shown, "NAME", "catalogue"))
        yield Case(f"command {value[:20]!r}", (value,), (shown, "command", "option"))
    for option in QUANTITIES:
        for value in BAD_QUANTITIES:
            yield Case(f"--{option} {value[:20]!r}", ("project", *ESTIMATE[1:], f"--{option}", value),
                       (option, option.replace("-", "_"), "failures", "power", "price"))  # fmt: skip
    for count in ("0", "-1", "x", "1e3", "99999999999", ""):
        yield Case(f"count --batch {count!r}", ("count", "gpt2-124m", "--batch", count), ("batch",))
        about = ("seq-len", "seq_len", "positions")
        yield Case(f"count --seq-len {count!r}", ("count", "gpt2-124m", "--seq-len", count), about)


def _option_case(option: str, value: str) -> Case:
    """One option of `estimate`. What it makes impossible may show in the batch, and a file by its own name."""
    about = (option, option.replace("-", "_"), "global_batch", value[:64].strip() or option)
    return Case(f"--{option} {value[:20]!r}", (*ESTIMATE, f"--{option}", value), about)


def _file_cases(folder: Path) -> Iterator[Case]:
    """Files that are no good file of any kind, read as each kind."""
    uses = {
        "model": ("estimate", "{}", *ESTIMATE[2:]), "cluster": (*ESTIMATE[:2], "{}", *ESTIMATE[3:]),
        "strategy": (*ESTIMATE, "--strategy", "{}"), "run": (*ESTIMATE, "--run", "{}"),
        "sweep": ("sweep", "{}", "--out", "{}.out", "--workers", "0"),
    }  # fmt: skip
    for name, data in TEXTS.items():
        file = folder / f"text-{name}.toml"
        file.write_bytes(data)
        for use, arguments in uses.items():
            yield Case(f"{use} file {name}", tuple(a.format(file) for a in arguments), (file.name,))
    (folder / "a-folder.toml").mkdir(exist_ok=True)
    for use, arguments in uses.items():
        for path in ("a-folder.toml", "missing.toml", "missing/deeper.toml"):
            yield Case(f"{use} {path}", tuple(a.format(folder / path) for a in arguments), (Path(path).name,))
    for name, data in CSVS.items():
        file = folder / f"table-{name}.csv"
        file.write_bytes(data)
        yield Case(f"validate {name}", ("validate", str(file)), (file.name, "runs"))
        yield Case(f"validate --kernels {name}", ("validate", "--kernels", str(file)), (file.name, "table"))


def _changed_file_cases(folder: Path) -> Iterator[Case]:
    """Good files with one key removed, misspelt, or of another value."""
    for kind, paths in GOOD_FILES.items():
        for path in paths:
            table = tomllib.loads((ROOT / path).read_text(encoding="utf-8"))
            arguments = ("estimate", "{}", *ESTIMATE[2:]) if kind == "model" else (*ESTIMATE[:2], "{}", *ESTIMATE[3:])
            yield from _changed(folder, table, Path(path).stem, arguments)
    yield from _changed(folder, STRATEGY, "strategy", (*ESTIMATE, "--strategy", "{}"))
    yield from _changed(folder, RUN, "run", (*ESTIMATE[:-2], "--run", "{}"))
    yield from _changed(folder, SWEEP, "sweep", ("sweep", "{}", "--out", "{}.out", "--workers", "0"))


def _changed(folder: Path, table: Mapping[str, Any], stem: str, arguments: tuple[str, ...]) -> Iterator[Case]:
    for number, (what, change) in enumerate(_changes(table)):
        file = folder / f"{stem}.{number}.toml"
        about = (file.name, "global_batch", "global-batch", *what.split()[0].split("."))
        prepare = partial(_write_changed, file, table, change)
        yield Case(f"{stem}: {what}", tuple(a.format(file) for a in arguments), about, prepare)


def _write_changed(file: Path, table: Mapping[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    changed = copy.deepcopy(dict(table))
    change(changed)
    file.write_text(to_toml(changed), encoding="utf-8")


def _changes(table: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
    for path in _paths(table, ()):
        shown = ".".join(map(str, path))
        for value in VALUES:
            yield f"{shown} = {value!r}", partial(_set, path, value)
        yield f"{shown} removed", partial(_remove, path)
        if isinstance(path[-1], str):
            yield f"{shown} misspelt", partial(_misspell, path)


def _set(path: tuple[Any, ...], value: Any, table: dict[str, Any]) -> None:
    _holder(table, path)[path[-1]] = value


def _remove(path: tuple[Any, ...], table: dict[str, Any]) -> None:
    del _holder(table, path)[path[-1]]


def _misspell(path: tuple[Any, ...], table: dict[str, Any]) -> None:
    holder = _holder(table, path)
    holder[f"{path[-1]}x"] = holder.pop(path[-1])


def _paths(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key != "sources":
            yield (*path, key)
            yield from _paths(item, (*path, key))


def _holder(table: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        table = table[key]
    return table


def to_toml(value: Any) -> str:
    """A table as TOML, all inline: enough for what is made here."""
    return "\n".join(f"{json.dumps(key)} = {_inline(item)}" for key, item in value.items()) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=True)
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def answer(case: Case) -> Outcome:
    """Run one command in this process and judge what it says."""
    if case.prepare:
        case.prepare()
    out, err = io.StringIO(), io.StringIO()
    as_json = ("--json",) if case.arguments[0] in {"estimate", "count", "project", "sweep", "validate"} else ()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = cli.run([*case.arguments, *as_json])
    except BaseException as error:  # noqa: BLE001 (whatever escapes is what is looked for)
        return Outcome(case, 3, str(error), f"{type(error).__name__} escaped")
    return Outcome(case, code, err.getvalue(), _fault(case, code, out.getvalue(), err.getvalue()))


def _fault(case: Case, code: int, out: str, err: str) -> str:
    if code not in {0, 1, 2}:
        return f"exit code {code}"
    if "Traceback" in out + err:
        return "a traceback"
    if code == 0:
        return _not_finite(out)
    if not err.strip():
        return "an error without a word"
    if not any(word and word in err for word in case.about):
        return "an error that does not say where"
    return ""


def _not_finite(out: str) -> str:
    def refuse(text: str) -> None:
        raise ValueError(text)

    try:
        if out.lstrip().startswith("{"):
            answer = json.loads(out, parse_constant=refuse)
            if isinstance(answer.get("counts"), dict) and "failed" in answer["counts"]:
                return "a point of a sweep that failed"
    except ValueError as error:
        return f"a number that is not finite: {error}"
    return ""


def judged(cases: list[Case], limit_s: float) -> Iterator[tuple[Outcome, float]]:
    """Outcomes with the CPU seconds of each; one that never ends is cut off."""
    signal.signal(signal.SIGALRM, _too_long)
    for case in cases:
        signal.alarm(60)
        before = time.process_time()
        outcome = answer(case)
        spent_s = time.process_time() - before
        signal.alarm(0)
        if not outcome.fault and spent_s > limit_s:
            outcome = replace(outcome, fault=f"{spent_s:.1f} s of CPU")
        yield outcome, spent_s


def _too_long(*_: object) -> None:
    raise TimeoutError("no answer within a minute")


def summary(cases: list[Case], limit_s: float = 2.0, limit_mib: float = 512.0) -> dict[str, Any]:
    """Every case in this process, whose peak memory bounds that of each."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    results = list(judged(cases, limit_s))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    bad = [outcome for outcome, _ in results if outcome.fault]
    return {
        "inputs": len(cases),
        "by_exit_code": dict(sorted(Counter(outcome.code for outcome, _ in results).items())),
        "answered_badly": len(bad) + (peak_mib > limit_mib),
        "slowest_cpu_s": round(max(spent_s for _, spent_s in results), 3),
        "peak_mib": round(peak_mib, 1),
        "limits": {"cpu_s": limit_s, "mib": limit_mib},
        "bad": [{"case": o.case.name, "fault": o.fault, "said": o.said[-300:]} for o in bad[:100]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit-s", type=float, default=2.0)
    parser.add_argument("--limit-mib", type=float, default=512.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = summary(corpus(Path(name)), options.limit_s, options.limit_mib)
    print(json.dumps(result, indent=2))
    sys.exit(1 if result["answered_badly"] else 0)


if __name__ == "__main__":
    main()
