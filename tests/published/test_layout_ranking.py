"""Which layout is fastest: our pick against the best measured, in every set of runs that differ only in their layout.

Aim: in each (model, devices, batch, length) of `colm_parallel_layouts` and `vtrain` the measured time of the layout
predicted fastest is on average within 2 % of the best measured, and Kendall's tau of the ranking is 0.8 or more.

What a row is. Rows that the table cannot tell apart are one layout, measured at its best: COLM ran each layout with up
to three attention kernels (Megatron's fused softmax, FlashAttention 1.0.8 and 2) whose column the table does not have;
they lie up to 30 % apart, so that no prediction from the table's columns reaches a tau over its single rows of
more than 0.78 in the set of 64 devices at 2,048 tokens, and 0.87 in that of 128 at 8,192. Trials 97689 to 97704 of COLM
are such rows: the sweep's order (kernel after kernel, the same 16 layouts each) and their out-of-memory pattern, which
is that of unfused attention, say that they ran Megatron's softmax kernel, though the table calls them fused.

What a tie is. COLM switched sequence parallelism on and off at tp = 1, where it does nothing: the same run twice. Those
pairs differ by up to 1.1 %, so measured times closer than that are ties (tau-b).
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import pytest

from simulator.validate.facts import CatalogFacts, estimator
from simulator.validate.metrics import kendall_tau
from simulator.validate.runs import PublishedRun, read_runs
from simulator.validate.score import ScoredRow, score

RUNS = Path(__file__).parents[2] / "validation" / "runs"
FAMILIES = ("colm_parallel_layouts", "vtrain")
NOISE_FRACTION = 0.011
LAYOUT = ("tp", "sp", "cp", "pp", "vp", "dp", "zero", "ep", "etp", "schedule", "micro_batch", "recompute",
          "recompute_detail", "precision", "attention")  # fmt: skip

Set = list[tuple[PublishedRun, ScoredRow]]


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Set]]:
    """Of each family, the sets of competing runs, out-of-memory ones among them."""
    found: dict[str, list[Set]] = {}
    for family in FAMILIES:
        rows = {row.run_id: row for row in read_runs([RUNS / f"{family}.csv"])}
        groups: defaultdict[object, Set] = defaultdict(list)
        for scored in score(rows.values(), estimator, CatalogFacts()).rows:
            groups[scored.peers].append((rows[scored.run_id], scored))
        found[family] = [group for group in groups.values() if len(layouts(group)) > 1]
    return found


def layouts(group: Set) -> list[tuple[float, float]]:
    """(predicted, best measured) of every layout that ran."""
    best: dict[object, tuple[float, float]] = {}
    for row, scored in group:
        if scored.measured_s is not None:
            key = (scored.framework, *(getattr(row, name) for name in LAYOUT))
            before = best.get(key, (0.0, math.inf))[1]
            best[key] = (scored.predicted_s, min(before, scored.measured_s))
    return list(best.values())


def ranked(group: Set) -> float | None:
    """tau-b with measured times within the noise as ties, by Kendall's own definition over pairs."""
    agree = pairs = tied_predicted = tied_measured = 0
    for (p, m), (q, n) in combinations(layouts(group), 2):
        guessed = (p > q) - (p < q)
        told = 0 if abs(math.log(m / n)) <= NOISE_FRACTION else (m > n) - (m < n)
        agree, pairs = agree + guessed * told, pairs + 1
        tied_predicted, tied_measured = tied_predicted + (guessed == 0), tied_measured + (told == 0)
    scale = (pairs - tied_predicted) * (pairs - tied_measured)
    return agree / math.sqrt(scale) if scale else None


def lost(group: Set) -> float:
    """How much longer than the best measured the layout ran that was predicted fastest, relative."""
    found = layouts(group)
    return min(found)[1] / min(measured for _, measured in found) - 1


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("families", "count", "loss", "tau"),
    [
        (FAMILIES, 88, 0.01, 0.87),  # 0.0013 and 0.892.
        (("vtrain",), 84, 0.005, 0.87),  # 0.0013 and 0.896.
        # 0.0001 and 0.806; 0.027 where the first two layouts of the set of 32 devices, predicted within 0.5 % of each
        # other, change places: two stages at micro-batch 2 ran 11 % longer than no pipeline at micro-batch 1, as COLM's
        # FlashAttention-2 runs of 2,048 tokens with a pipeline and micro-batches of two or more do and others do not.
        (("colm_parallel_layouts",), 4, 0.03, 0.78),
    ],
)
def test_our_pick_runs_nearly_as_fast_as_the_best(
    sets: dict[str, list[Set]], families: tuple[str, ...], count: int, loss: float, tau: float
) -> None:
    groups = [group for family in families for group in sets[family]]
    assert len(groups) == count
    assert mean([lost(group) for group in groups]) <= loss
    assert mean([found for group in groups if (found := ranked(group)) is not None]) >= tau


def test_the_planners_pick_ran_and_ran_nearly_as_fast_as_the_best(sets: dict[str, list[Set]]) -> None:
    """The planner drops what it says does not fit, before it ranks: 0.0013 with vtrain's sets, 0.027 in COLM's alone,
    whose fastest run of 32 devices is said to need 80.7 of 79.2 GiB.
    """
    losses = {}
    for family in FAMILIES:
        picks = []
        for group in sets[family]:
            said = [(scored.predicted_s, scored.measured_s) for _, scored in group if scored.predicted_fits]
            picked = min(said, key=lambda pair: pair[0])[1]
            assert picked is not None, "the pick ran out of memory"
            picks.append(picked / min(scored.measured_s for _, scored in group if scored.measured_s) - 1)
        losses[family] = picks
    assert mean([loss for picks in losses.values() for loss in picks]) <= 0.01
    assert mean(losses["vtrain"]) <= 0.005
    assert mean(losses["colm_parallel_layouts"]) <= 0.03


def test_most_sets_are_met_within_the_aim_each_on_its_own(sets: dict[str, list[Set]]) -> None:
    groups = [group for family in FAMILIES for group in sets[family]]
    assert sum(lost(group) <= 0.02 for group in groups) >= 85
    assert sum(lost(group) == 0.0 for group in groups) >= 80


def test_a_repeated_run_differs_by_the_noise_and_is_predicted_alike(sets: dict[str, list[Set]]) -> None:
    """Sequence parallelism at tp = 1 does nothing, so these rows of COLM are repeats."""
    repeats = 0
    for group in sets["colm_parallel_layouts"]:
        alone = [(row, scored) for row, scored in group if row.tp == 1 and row.sp is not None and scored.measured_s]
        for (row, one), (other, two) in combinations(alone, 2):
            if (row.pp, row.micro_batch) == (other.pp, other.micro_batch):
                assert {row.sp, other.sp} == {0, 1}
                assert one.predicted_s == two.predicted_s
                assert abs(math.log((one.measured_s or 0.0) / (two.measured_s or 1.0))) <= 0.0115
                repeats += 1
    assert repeats == 3


def test_the_rows_that_are_called_fused_run_out_of_memory_like_unfused_ones() -> None:
    """Trials 97689 to 97704 (see above): the same 16 layouts as the block before them, and the same verdicts."""
    blocks: dict[str, dict[tuple[object, ...], str]] = {"suspect": {}, "unfused": {}, "flash": {}}
    for row in read_runs([RUNS / "colm_parallel_layouts.csv"]):
        trial = int(row.table.split()[1])
        name = "suspect" if 97689 <= trial <= 97704 else "flash" if 97705 <= trial <= 97720 else ""
        if row.devices == 64 and row.seq_len == 2048 and row.recompute == "none" and row.attention == "unfused":
            name = "unfused"
        if name:
            blocks[name][(row.tp, row.pp, row.micro_batch)] = row.outcome
    assert blocks["suspect"].keys() == blocks["flash"].keys()
    assert len(blocks["suspect"]) == 16
    assert all(blocks["unfused"][layout] == outcome for layout, outcome in blocks["suspect"].items())
    assert sum(blocks["flash"][layout] != outcome for layout, outcome in blocks["suspect"].items()) == 3


def test_tau_of_the_report_is_this_one_without_ties(sets: dict[str, list[Set]]) -> None:
    for group in sets["vtrain"]:
        found = layouts(group)
        apart = all(abs(math.log(m / n)) > NOISE_FRACTION for (_, m), (_, n) in combinations(found, 2))
        if apart:
            assert ranked(group) == pytest.approx(kendall_tau([p for p, _ in found], [m for _, m in found]))
