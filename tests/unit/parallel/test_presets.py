"""Switch Transformer's five partitionings against Figure 9 and sections 5.1 to 5.5 (Fedus 2022).

Splits of weights and tokens, memory and traffic. T5-XXL and Switch-XXL are estimated on sixteen devices of a TPU v3
torus; every expected figure is worked out here.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest
from click.testing import CliRunner

from simulator.catalog import load_cluster, load_model
from simulator.cli.app import app
from simulator.errors import InputError
from simulator.estimate import estimate
from simulator.parallel.presets import PRESETS, CoreShare, core_shares, describe, preset
from simulator.report.plot_switch import KINDS, tokens_of, weights_of
from simulator.result import Estimate
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

CLUSTER = load_cluster("tpu-v3-pod", nodes=4)
DENSE, SPARSE = load_model("t5-xxl-switch-baseline"), load_model("switch-xxl")
BATCH, ENCODER, DECODER, HIDDEN = 64, 512, 114, 4096
RUN = Run(global_batch=BATCH, framework="mesh-tensorflow", optimizer="adafactor")

# Figure 9 on 16 cores (n = m = 4, or E = n = 16): different matrices, slices of each, different token shares.
FIGURE_9 = {
    "data": (1, 1, 16),
    "model": (1, 16, 1),
    "model+data": (1, 4, 4),
    "expert+data": (16, 1, 16),
    "expert+model+data": (4, 4, 4),
}


@pytest.mark.parametrize("name", PRESETS)
def test_who_holds_what_is_figure_9(name: str) -> None:
    matrices, parts, tokens = FIGURE_9[name]
    shares = core_shares(preset(name, SPARSE, 16))
    assert len(shares) == 16
    assert {share.parts for share in shares} == {parts}
    held = Counter((share.matrix, share.part) for share in shares)
    assert len({share.matrix for share in shares}) == matrices
    assert set(held.values()) == {16 // (matrices * parts)}
    assert set(Counter(share.tokens for share in shares).values()) == {16 // tokens}
    # A group of m cores sees the same tokens and holds all slices of one matrix between them.
    for group in range(tokens):
        mine = [share for share in shares if share.tokens == group]
        assert {share.part for share in mine} == set(range(parts))
        assert len({share.matrix for share in mine}) == 1


def test_the_picture_of_figure_9_shows_these_splits() -> None:
    for name, kind in zip(PRESETS, KINDS, strict=True):
        shares = core_shares(preset(name, SPARSE, 16))
        assert [(share.matrix, share.part) for share in shares] == [weights_of(kind, core) for core in range(16)]
        assert [share.tokens for share in shares] == [tokens_of(kind, core) for core in range(16)]


def _estimate(name: str, dense: bool = False) -> Estimate:
    model = DENSE if dense else SPARSE
    found = preset(name, model, 16)
    return estimate(model, CLUSTER, RUN, preset(name, model, 16, micro_batch=BATCH // found.dp))


def _tokens() -> float:
    """Tokens that pass a layer of the encoder and one of the decoder, of the whole batch."""
    return BATCH * (ENCODER + DECODER)


def test_data_sends_gradients_once_per_step_and_nothing_else() -> None:
    """Section 5.1: 2 (N - 1) / N of all weights' fp32 gradients, and every core holds all weights."""
    answer = _estimate("data", dense=True)
    count = _parameters(DENSE)
    assert answer.traffic_bytes == {"dp": pytest.approx(2 * 15 / 16 * 4 * count, rel=1e-6)}
    assert answer.memory.parts["weights"] == pytest.approx(4 * count, rel=1e-6)


def _parameters(model: object) -> float:
    from simulator.count import count

    return float(count(model)["parameters"]["total"])  # type: ignore[arg-type]


def test_model_sends_activations_and_no_gradients_of_split_weights() -> None:
    """Sections 5.2 and 5.3: every block all-reduces [B / n, d] over m, forward and backward: 48 blocks in the
    encoder (24 attentions and feed-forwards) and 72 in the decoder (cross-attention too), embeddings aside."""
    for name, n, m in (("model", 1, 16), ("model+data", 4, 4)):
        answer = _estimate(name, dense=True)
        blocks = BATCH / n * (48 * ENCODER + 72 * DECODER)
        expected = 2 * 2 * (m - 1) / m * blocks * HIDDEN * 2
        assert answer.traffic_bytes["tp"] == pytest.approx(expected, rel=0.05)
        weights = answer.memory.parts["weights"]
        assert weights == pytest.approx(4 * _parameters(DENSE) / m, rel=0.02)
        gradients = answer.traffic_bytes.get("dp", 0.0)
        assert gradients == pytest.approx(2 * (n - 1) / n * weights, rel=1e-6)


def test_experts_exchange_tokens_four_times_and_keep_their_gradients() -> None:
    """Section 5.4: [E, C, d] in bfloat16 to dispatch and to return, forward and backward, 24 layers with 1.25 times the
    tokens; gradients only of what is not an expert, 8.0B of 394.5B parameters."""
    answer = _estimate("expert+data")
    rows = 12 * _tokens() / 16 * 1.25
    assert answer.traffic_bytes["ep"] == pytest.approx(4 * 15 / 16 * rows * HIDDEN * 2, rel=1e-6)
    experts = 24 * 128 * 3 * HIDDEN * 10240
    others = _parameters(SPARSE) - experts
    assert answer.traffic_bytes["dp"] == pytest.approx(2 * 15 / 16 * 4 * others, rel=1e-3)
    assert answer.memory.parts["weights"] == pytest.approx(4 * (others + experts / 16), rel=1e-3)
    assert set(answer.traffic_bytes) == {"dp", "ep"}


def test_all_three_send_over_both() -> None:
    """Section 5.5: all-to-all over n and, inside every expert, an all-reduce over m of the same rows."""
    answer = _estimate("expert+model+data")
    rows = 12 * _tokens() / 4 * 1.25
    assert answer.traffic_bytes["ep"] == pytest.approx(4 * 3 / 4 * rows * HIDDEN * 2, rel=1e-6)
    assert answer.traffic_bytes["etp"] == pytest.approx(2 * 2 * 3 / 4 * rows * HIDDEN * 2, rel=1e-6)
    experts = 24 * 128 * 3 * HIDDEN * 10240
    held = (_parameters(SPARSE) - experts) / 4 + experts / 16
    assert answer.memory.parts["weights"] == pytest.approx(4 * held, rel=0.02)


def test_ways_follow_the_model_and_the_devices() -> None:
    # 64 experts over 1024 devices: an expert a device group, sixteen replicas of each.
    base = preset("expert+data", load_model("switch-base-64"), 1024)
    assert (base.dp, base.ep, base.expert_dp) == (1024, 64, 16)
    assert preset("model+data", DENSE, 32, model_ways=8) == Strategy(tp=8, dp=4, sequence_parallel=False)
    # Twelve heads: of the divisors of 64 up to 8, four is the largest that splits them.
    assert preset("model+data", load_model("t5-base-switch-baseline"), 64).tp == 4


def test_two_experts_are_two_matrices() -> None:
    """On two data ways a core each, with tokens of its own."""
    assert core_shares(Strategy(dp=2, ep=2)) == (CoreShare(0, 0, 1, 0), CoreShare(1, 0, 1, 1))
    assert preset("data", DENSE, 4, micro_batch=3) == Strategy(dp=4, micro_batch=3, sequence_parallel=False)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"Did you mean expert.data"):
        preset("experts+data", SPARSE, 16)
    with pytest.raises(InputError, match=r"needs experts, and t5-xxl-switch-baseline has none. model.data splits"):
        preset("expert+model+data", DENSE, 16)
    with pytest.raises(InputError, match=r"3 model ways do not divide 16 devices. 2 do."):
        preset("model+data", DENSE, 16, model_ways=3)


def test_estimate_takes_a_preset_and_says_what_it_splits() -> None:
    words = ["estimate", "switch-xxl", "tpu-v3-pod", "--nodes", "4", "--global-batch", "64", "--json",
             "--framework", "mesh-tensorflow", "--optimizer", "adafactor"]  # fmt: skip
    done = CliRunner().invoke(app, [*words, "--preset", "expert+model+data"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    chosen = answer["strategy"]
    assert [chosen[name] for name in ("tp", "dp", "ep", "etp", "micro_batch")] == [4, 4, 4, 4, 16]
    said = describe("expert+model+data", preset("expert+model+data", SPARSE, 16))
    assert answer["notes"][: len(said)] == list(said)
    assert "4 different sets of experts, each over a group of 4 cores" in said[1]
    done = CliRunner().invoke(app, [*words, "--preset", "data", "--micro-batch", "1"])
    assert json.loads(done.stdout)["strategy"]["micro_batch"] == 1
