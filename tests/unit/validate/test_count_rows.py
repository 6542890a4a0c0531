"""The table of the first ring: what `shardwise validate --counts` prints."""

from __future__ import annotations

import importlib.util

import pytest

from simulator.errors import InputError
from simulator.validate import torch_counts
from simulator.validate.torch_counts import count_rows


@pytest.mark.parametrize("name", ["gpt2-124m", "switch-base-8", "deepseek-v2"])
def test_every_row_has_difference_zero(name: str) -> None:
    pytest.importorskip("torch")
    rows = count_rows([name])
    assert [row["what"] for row in rows] == ["parameters", "forward FLOPs", "backward FLOPs", "bytes kept for backward"]
    for row in rows:
        assert (row["model"], row["difference"]) == (name, 0)
        assert row["ours"] == row["torch"] > 0


def test_without_torch_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(torch_counts, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(InputError, match=r"shardwise\[torch\]"):
        count_rows(["gpt2-124m"])
