"""Mutation testing of the physics with mutmut, on a copy of the checkout; the score goes to validation/mutation.json.

    python tools/mutation.py [PATTERN ...] [--children 2] [--collect FOLDER]

PATTERNs choose mutants by module ("simulator.units*", "simulator.schedule*"); without any, all of [tool.mutmut] in
pyproject.toml, which takes hours. Only tests that reach a function are run on its mutants. `--collect` reads the
results of a folder where mutmut has run already. A survivor keeps the reason beside it in validation/mutation.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "validation" / "mutation.json"
KILLED = {"killed", "timeout", "caught by type check"}
UNTRIED = {"not checked", "no tests"}
"""Left out of the score: not reached yet, and functions that none of the selected tests calls (counted apart)."""
UNEXPLAINED = "not yet explained"


def mutate(folder: Path, patterns: list[str], children: int) -> None:
    """Export HEAD into the folder and run mutmut there."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(children), *patterns]
    subprocess.run(command, cwd=folder, check=False)


def results(folder: Path) -> dict[str, str]:
    """Mutant -> what became of it; those that were not tried are left out."""
    command = [str(Path(sys.executable).with_name("mutmut")), "results", "--all", "true"]
    text = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"^\s*(simulator\.\S+): (.+?)\s*$", text, re.MULTILINE))
    return {name: status for name, status in found.items() if status not in UNTRIED}


def shown(folder: Path, mutant: str) -> str:
    """The changed line of a mutant."""
    command = [str(Path(sys.executable).with_name("mutmut")), "show", mutant]
    text = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True).stdout
    lines = [line for line in text.splitlines() if re.match(r"[+-](?![+-])", line)]
    return " => ".join(line[1:].strip() for line in lines[:2])[:200]


def summary(found: dict[str, str], folder: Path, of: str) -> dict[str, Any]:
    """The figures, and every survivor with its reason."""
    earlier = json.loads(OUT.read_text(encoding="utf-8")).get("survivors", []) if OUT.exists() else []
    reasons = {entry["mutant"]: entry["reason"] for entry in earlier}
    survivors = sorted(name for name, status in found.items() if status not in KILLED)
    killed = len(found) - len(survivors)
    return {
        "date": date.today().isoformat(), "of": of, "tried": len(found), "killed": killed,
        "score": killed / max(len(found), 1), "by_status": dict(Counter(found.values())),
        "survivors": [
            {"mutant": name, "change": shown(folder, name), "status": found[name],
             "reason": reasons.get(name, UNEXPLAINED)} for name in survivors
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--children", type=int, default=2)
    parser.add_argument("--collect", type=Path)
    parser.add_argument("--of", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.collect or Path(name)
        if not options.collect:
            mutate(folder, options.patterns, options.children)
        of = options.of or (f"a sample: {', '.join(options.patterns)}" if options.patterns else "all mutants")
        result = summary(results(folder), folder, of)
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "survivors"}, indent=2))


if __name__ == "__main__":
    main()
