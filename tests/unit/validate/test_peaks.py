"""What published peaks mean, and that a score compares like with like."""

from __future__ import annotations

import pytest

from simulator.validate.peaks import MEANINGS, peak_meaning
from simulator.validate.score import score
from tests.unit.validate.support import World, flops_over_peak, row


@pytest.mark.parametrize(
    ("source", "meaning"),
    [
        ("github:MooreThreads/SimuMax@4dcaae513ba7:docs/b200/b200_release_v1.2_summary.json", "allocated"),
        ("github:alpa-projects/alpa@8350d91382e8:osdi22_artifact/results_e2e_ref.tsv", "allocated"),
        ("github:bigscience-workshop/bigscience@9e64edec2ad1:experiments/gpt2.md", "device"),
        ("arXiv:2401.10241 Tables 3 and 4", "device"),
    ],
)
def test_a_source_says_what_its_peak_is(source: str, meaning: str):
    assert meaning in MEANINGS
    assert peak_meaning(row(source=source)) == meaning


def test_a_peak_of_tensors_is_compared_with_tensors():
    rows = [row(run_id=name, source=source, peak_memory_bytes=5e8)
            for name, source in (("tensors", "github:alpa-projects/alpa@1"), ("device", "a paper"))]  # fmt: skip
    scored = {one.run_id: one.predicted_peak_bytes for one in score(rows, flops_over_peak, World()).rows}
    assert scored["tensors"] == pytest.approx(0.9 * scored["device"])
