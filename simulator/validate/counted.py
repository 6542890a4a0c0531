"""The first ring's table as a file: `shardwise validate --counts --out validation` writes counts.csv and needs torch;
the report reads it and does not.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulator.errors import InputError, Problem

COLUMNS = ("model", "what", "ours", "torch", "difference", "note")
FILE = "counts.csv"


def write_counts(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write the rows of `count_rows` into `folder`; returns the path. Raises InputError when it cannot be written."""
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError([Problem(f"cannot be written: {error.strerror}.", str(folder))]) from None
    return path


def read_counts(folder: Path) -> list[dict[str, Any]]:
    """Rows that `write_counts` wrote; none where there is no such file. Raises InputError for another table."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise InputError([Problem(f"its columns must be {', '.join(COLUMNS)}.", f"{path}:1")])
            return [row | {name: int(row[name]) for name in ("ours", "torch", "difference")} for row in reader]
    except (OSError, ValueError, TypeError) as error:
        raise InputError([Problem(f"cannot be read as counts: {error}.", str(path))]) from None


def counts_section(folder: Path) -> str:
    """What torch counts beside what we count, model by model, as Markdown with its heading; nothing without a file."""
    rows = read_counts(folder)
    if not rows:
        return ""
    whats = list(dict.fromkeys(row["what"] for row in rows))
    equal = sum(row["difference"] == 0 for row in rows)
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        models.setdefault(row["model"], {})[row["what"]] = row
    opening = (
        f"\n## Counts equal to torch's\n\n{equal} of {len(rows)} counts of {len(models)} models have difference 0 "
        "([the table](counts.csv), written by `shardwise validate --counts --out validation`). Parameters are of the "
        "whole model; FLOPs and bytes of each kind of layer once and both ends, with flash attention; multi-token "
        "prediction is included where a model has it.\n"
    )
    lines = [
        opening,
        f"| model | {' | '.join(whats)} | differences |",
        f"| --- |{' --- |' * (len(whats) + 1)}",
    ]
    for name, found in models.items():
        cells = [f"{found[what]['torch']:,}" if what in found else "" for what in whats]
        apart = [f"{row['difference']:+,} {what}" for what, row in found.items() if row["difference"]]
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(apart) or '0'} |")
    return "\n".join(lines) + "\n"
