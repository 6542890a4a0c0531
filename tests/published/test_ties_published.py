"""The chance that the slower of two predictions is measured faster is the share of published pairs in which it was; the
pair's own family is left out.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.intervals import kin
from simulator.plan import ties
from simulator.plan.ties import faster_probability, published_differences

PEERS = ["family", "model", "device_run", "devices", "global_batch", "seq_len"]


def _pairs(root: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Competing runs: how far apart they are predicted, whether the order is wrong, and the chance stated."""
    residuals = pd.read_csv(root / "validation" / "residuals.csv", comment="#")
    tables = [pd.read_csv(file, comment="#", dtype=str) for file in (root / "validation" / "runs").glob("*.csv")]
    columns = ["run_id", "model", "device", "devices", "global_batch", "seq_len", "step_time_s"]
    rows = residuals.merge(pd.concat(tables)[columns], on="run_id", suffixes=("", "_run"))
    rows = rows[rows["log_ratio"].notna() & rows["step_time_s"].notna()]
    measured = np.log(rows["step_time_s"].astype(float))
    rows = rows.assign(measured=measured, predicted=measured - rows["log_ratio"])
    every = published_differences()
    found = []
    for key, group in rows.groupby(PEERS, dropna=False):
        others = tuple(family for family in every if family.family != kin(str(key[0])))
        monkeypatch.setattr(ties, "published_differences", lambda others=others: others)
        logs = list(zip(group["predicted"], group["measured"], strict=True))
        for (p, m), (q, n) in combinations(logs, 2):
            apart = abs(p - q)
            found.append((apart, (p - q) * (m - n) < 0, faster_probability(float(np.exp(apart)), 1.0)))
    return pd.DataFrame(found, columns=["apart", "wrong", "chance"])


def test_orders_are_wrong_as_often_as_stated(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = _pairs(root, monkeypatch)
    pairs = pairs[pairs["apart"] > 1e-9]
    bins = pd.cut(pairs["apart"], [0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 9.0])
    rates = pairs.groupby(bins, observed=True)[["wrong", "chance"]].mean()
    assert (pairs.groupby(bins, observed=True).size() > 200).all()
    assert rates["wrong"].to_list() == pytest.approx(rates["chance"].to_list(), abs=0.12)
    far = pairs[pairs["chance"] < ties.TIE_PROBABILITY]
    assert far["wrong"].mean() < ties.TIE_PROBABILITY, "what is no tie is the other way round in fewer than a tenth"
