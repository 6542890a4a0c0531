"""The rows of a sweep as a table: pandas, CSV, Parquet. The same rows give the same bytes, whoever made them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.sweep.evaluate import COLUMNS, PLAN_COLUMNS
from simulator.sweep.journal import unusable
from simulator.sweep.points import planned

if TYPE_CHECKING:
    import pandas as pd

CSV, PARQUET = "results.csv", "results.parquet"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def columns_of(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the points set, in their order, then what every row has. A column of both names is the point's."""
    named = dict.fromkeys(name for point in points for name in point)
    answers = (*PLAN_COLUMNS, *COLUMNS) if any(map(planned, points)) else COLUMNS
    return [*named, *(name for name in answers if name not in named)]


def joined(points: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Points with their rows, in the order of the sweep; those without a row yet are left out."""
    return [{**row, **point} for point, row in zip(points, rows, strict=True) if row is not None]


def frame(points: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any] | None]) -> pd.DataFrame:
    """The table as a DataFrame. A list (layers per stage, an order) is its JSON text."""
    import pandas as pd

    columns = columns_of(points)
    records = [{name: _plain(value) for name, value in record.items()} for record in joined(points, rows)]
    return pd.DataFrame.from_records(records, columns=columns).astype({"fits": "boolean"})


def write_tables(
    folder: Path, points: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any] | None]
) -> list[Path]:
    """Write results.csv, and results.parquet where pyarrow is installed; whole or not at all."""
    paths = [folder / CSV]
    _replace(paths[0], csv_bytes(points, rows))
    if find_spec("pyarrow"):
        buffer = io.BytesIO()
        data = frame(points, rows)
        for name in data.columns:
            # One column of several types (an axis of numbers and of "x2") has no Parquet type but text.
            if data[name].dtype == object and len({type(value) for value in data[name] if not _empty(value)}) > 1:
                data[name] = data[name].map(lambda value: None if _empty(value) else str(value))
        data.to_parquet(buffer, index=False)
        paths.append(folder / PARQUET)
        _replace(paths[1], buffer.getvalue())
    return paths


def csv_bytes(points: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any] | None]) -> bytes:
    """The table as CSV: numbers by their shortest exact text, no cell that a spreadsheet takes for a formula."""
    text = io.StringIO()
    columns = columns_of(points)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for record in joined(points, rows):
        writer.writerow([_cell(record.get(name)) for name in columns])
    return text.getvalue().encode("utf-8")


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)  # noqa: PLR0124 (NaN)


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple) else value


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return _plain(value)


def _replace(path: Path, data: bytes) -> None:
    """Write to a temporary name, sync, rename: a reader sees the old file or the new one.

    Raises InputError where there is no room; then the old file stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise unusable(path, error) from None
