"""What the Megatron-LM export refuses to guess."""

from __future__ import annotations

import pytest

from simulator.catalog import load_model
from simulator.errors import InputError
from simulator.io.megatron import dump
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

MODEL = load_model("gpt3-175b")


def test_a_length_is_written_and_never_zero() -> None:
    flags = dump(Strategy(tp=8), Run(global_batch=64, seq_len=2048), MODEL).splitlines()
    assert "--seq-length 2048" in flags
    with pytest.raises(InputError, match="sequence length"):
        dump(Strategy(tp=8), Run(global_batch=64), MODEL)


@pytest.mark.parametrize("precision", ["fp8", "mxfp8", "nvfp4", "tf32"])
def test_a_precision_of_several_flags_is_refused_and_not_called_bf16(precision: str) -> None:
    with pytest.raises(InputError, match=f"{precision} is not written"):
        dump(Strategy(), Run(global_batch=64, seq_len=2048, precision=precision), MODEL)
