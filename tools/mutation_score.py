"""The mutation score as the report says it: of files mutated whole, and an estimate from samples of the others."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
MUTATION = ROOT / "validation" / "mutation.json"
PHYSICS = ("arch", "cluster", "parallel", "schedule")
UNEXPLAINED = "not yet explained"
"""What tools/mutation.py writes beside a survivor that nobody has looked at."""
NORMAL_95 = 1.96
T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """A share with the ends of its 95 % interval."""

    share: float
    low: float
    high: float


def physics() -> list[Path]:
    """The files that mutation testing is for."""
    files = [file for folder in PHYSICS for file in sorted((ROOT / "simulator" / folder).rglob("*.py"))]
    return [file for file in [*files, ROOT / "simulator" / "units.py", ROOT / "simulator" / "numbers.py"]
            if file.stat().st_size > 200]  # fmt: skip


def drawn(mutants: Sequence[T], count: int, seed: int, place: str) -> list[T]:
    """So many of a file's mutants at random, each as likely as any other: the same ones for the same code and seed."""
    picked = random.Random(f"{place} {seed}").sample(range(len(mutants)), min(count, len(mutants)))
    return [mutants[index] for index in sorted(picked)]


def content(path: Path) -> str:
    """What tells two states of a file apart, whether they were committed or not."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def entries() -> tuple[dict[str, Any], dict[str, Any]]:
    """What tools/mutation.py found, by file: files mutated whole, and samples of others."""
    found = json.loads(MUTATION.read_text(encoding="utf-8")) if MUTATION.exists() else {}
    return found.get("files", {}), found.get("samples", {})


def killed_share(strata: list[tuple[int, int, int]]) -> Estimate:
    """Share of all mutants that tests kill, from (mutants, drawn, killed of these) of every file.

    Stratified random sampling (Cochran 1977, Sampling Techniques, sections 5.3 and 5.10): with W = N_h / N the share is
    sum W p_h, its variance sum W^2 (1 - n_h / N_h) p_h (1 - p_h) / (n_h - 1), the interval 1.96 standard errors to both
    sides, at most 1. In the variance p_h is (killed + 1) / (drawn + 2), so that a file all of whose few draws were
    killed does not pass for certain. Files mutated whole have no variance.

    >>> killed_share([(100, 100, 90)])
    Estimate(share=0.9, low=0.9, high=0.9)
    """
    total = sum(mutants for mutants, _, _ in strata)
    share = variance = 0.0
    for mutants, tried, killed in strata:
        weight = mutants / total
        share += weight * killed / tried
        if tried < mutants:
            smooth = (killed + 1) / (tried + 2)
            variance += weight**2 * (1 - tried / mutants) * smooth * (1 - smooth) / (tried - 1)
    reach = NORMAL_95 * math.sqrt(variance)
    return Estimate(share, share - reach, min(share + reach, 1.0))


def measured() -> str:
    """The score in one line."""
    whole, samples = entries()
    if not whole:
        return "not measured: no validation/mutation.json"
    every = physics()
    mutants, killed = (sum(entry[name] for entry in whole.values()) for name in ("mutants", "killed"))
    explained = sum(entry["reason"] != UNEXPLAINED for file in whole.values() for entry in file["survivors"])
    text = (
        f"{len(whole)} of {len(every)} files mutated whole: {killed:,} of {mutants:,} killed "
        f"({killed / mutants:.1%}), {explained} of the {mutants - killed} others explained"
    )
    if not samples:
        return text
    strata = [(entry["of"], entry["mutants"], entry["killed"]) for entry in samples.values()]
    of, tried, hit = (sum(column) for column in zip(*strata, strict=True))
    part = killed_share(strata)
    both = killed_share([*strata, *((entry["mutants"], entry["mutants"], entry["killed"]) for entry in whole.values())])
    return (
        f"{text}; {len(samples)} others sampled: {hit:,} of {tried:,} draws killed, {part.share:.1%} of their {of:,} "
        f"mutants (95 % interval {part.low:.1%} to {part.high:.1%}); both together {both.share:.1%} "
        f"({both.low:.1%} to {both.high:.1%})"
    )


def table_lines() -> list[str]:
    """The report's section on mutation testing."""
    whole, samples = entries()
    lines = [
        "## Mutation testing, file by file",
        "",
        "Every mutant of every function of these files (signs, constants, comparisons, arguments, texts; not the texts",
        "of error messages, nor constants that are computed at import). Survivors with their reasons:",
        "[mutation.json](mutation.json). A file in *italics* was changed since it was mutated.",
        "",
        "| file | mutants | killed | no test reaches | score | at |",
        "|---|---|---|---|---|---|",
        *(f"| {_name(name, entry)} | {entry['mutants']} | {entry['killed']} | {entry['untested']} | "
          f"{entry['killed'] / max(entry['mutants'], 1):.1%} | {_at(entry)} |" for name, entry in whole.items()),
    ]  # fmt: skip
    if samples:
        lines += [
            "",
            "### Samples of the other files",
            "",
            "Of these files so many mutants were drawn at random, each as likely as any other of its file. Tests that",
            "were written for survivors of earlier draws do not know these, whose seed is another. Files' shares are",
            "weighted by how many mutants each has (Cochran 1977, Sampling Techniques, section 5.10).",
            "",
            "| file | of how many | drawn | killed | no test reaches | share | seed | at |",
            "|---|---|---|---|---|---|---|---|",
            *(f"| {_name(name, entry)} | {entry['of']} | {entry['mutants']} | {entry['killed']} | {entry['untested']} "
              f"| {entry['killed'] / max(entry['mutants'], 1):.1%} | {entry['seed']} | {_at(entry)} |"
              for name, entry in samples.items()),
        ]  # fmt: skip
    known = {*whole, *samples}
    left = [str(file.relative_to(ROOT)) for file in physics() if str(file.relative_to(ROOT)) not in known]
    return [*lines, "", f"Not mutated: {', '.join(name.removeprefix('simulator/') for name in left) or 'none'}."]


def _name(name: str, entry: dict[str, Any]) -> str:
    same = (ROOT / name).exists() and content(ROOT / name) == entry["content"]
    return name if same else f"*{name}*"


def _at(entry: dict[str, Any]) -> str:
    return f"{entry['date']} {entry['commit']}"
