"""Scores predicted kernel and collective times against measured tables in the format of data/kernels.

A table's kind is told by its columns. Errors are relative to the measurement; only work of at least `min_flops`
(kernels) or `min_bytes` (collectives) counts, since below that latency and measurement noise are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError, Problem, did_you_mean
from simulator.spec.hardware import Device
from simulator.validate.kernel_collectives import COLLECTIVE_KINDS, collective_rows
from simulator.validate.kernel_devices import measured_device
from simulator.validate.kernel_rows import DTYPES, FLOPS, SECONDS

Array = NDArray[np.float64]

COLUMNS: Mapping[str, frozenset[str]] = {
    "gemm": frozenset({"device", "dtype", "m", "n", "k", "latency_ms"}),
    "attention": frozenset({"device", "batch", "seq_len", "heads", "kv_heads", "head_dim", "latency_ms"}),
    "moe": frozenset(
        {"device", "dtype", "tokens", "hidden", "ffn_hidden", "topk", "experts", "tp", "ep", "distribution",
         "kernel_source", "latency_ms"}
    ),
    **COLLECTIVE_KINDS,
}  # fmt: skip


def score_tables(
    paths: Iterable[Path | str],
    *,
    min_flops: float = 2e9,
    min_bytes: float = 1e6,
    device_named: Callable[[str], Device] | None = None,
) -> list[dict[str, Any]]:
    """One row of scores per table, device and kind: {table, device, kind, scored, mean, median, p90, bias}.

    `kind` is the table's kind with the dtype or the collective. mean, median and p90 are of absolute relative errors,
    bias is the mean signed error (predicted over measured, less 1); None when nothing was large enough. Raises
    InputError for files that cannot be read, unknown columns, devices or dtypes.
    """
    named = device_named or measured_device
    result = []
    for path in map(Path, paths):
        rows = _read(path)
        kind = _kind(rows, path)
        if kind in COLLECTIVE_KINDS:
            groups: Iterator[tuple[str, str, Array]] = collective_rows(kind, rows, min_bytes)
        else:
            groups = _kernel_errors(kind, rows, min_flops, named, path)
        result += [{"table": path.name, "device": device, "kind": of, **scores(error)} for device, of, error in groups]
    return result


def scores(error: Array) -> dict[str, Any]:
    """Count and errors of signed relative errors."""
    if not error.size:
        return {"scored": 0, "mean": None, "median": None, "p90": None, "bias": None}
    size = np.abs(error)
    return {
        "scored": int(error.size), "mean": float(size.mean()), "median": float(np.median(size)),
        "p90": float(np.quantile(size, 0.9)), "bias": float(error.mean()),
    }  # fmt: skip


def _kernel_errors(
    kind: str, rows: Any, min_flops: float, named: Callable[[str], Device], path: Path
) -> Iterator[tuple[str, str, Array]]:
    rows = rows.assign(dtype="bfloat16") if "dtype" not in rows else rows
    unknown = sorted(set(rows["dtype"]) - set(DTYPES))
    if unknown:
        hint = did_you_mean(str(unknown[0]), DTYPES)
        raise InputError([Problem(f"dtype {', '.join(map(str, unknown))} is not modelled.", f"{path}: dtype", hint)])
    for (device, dtype), held in rows.groupby(["device", "dtype"], sort=True):
        columns = {name: held[name].to_numpy() for name in held}
        large = FLOPS[kind](columns) >= min_flops
        columns = {name: values[large] for name, values in columns.items()}
        measured = columns["latency_ms"].astype(np.float64) * 1e-3
        predicted = SECONDS[kind](named(str(device)), DTYPES[str(dtype)], columns) if large.any() else measured
        yield str(device), f"{kind} {dtype}", np.asarray(predicted / measured - 1.0)


def _read(path: Path) -> Any:
    import pandas as pd

    try:
        return pd.read_csv(path)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise InputError([Problem(f"cannot be read as a CSV table: {error}", str(path))]) from None


def _kind(rows: Any, path: Path) -> str:
    held = set(rows.columns)
    for kind, needed in COLUMNS.items():
        if needed <= held:
            return kind
    nearest = min(COLUMNS, key=lambda kind: len(COLUMNS[kind] - held))
    missing = ", ".join(sorted(COLUMNS[nearest] - held))
    raise InputError([Problem(f"is no kernel table: the nearest kind is {nearest}, without its {missing}.", str(path))])
