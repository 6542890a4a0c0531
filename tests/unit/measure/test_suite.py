"""What is measured: cases that are legal, parts that hold what the simulator counts, tables that are read again."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest

from simulator import catalog
from simulator.arch.layer import embedding_segment, head_segment, layer_segment, norm_segment
from simulator.errors import InputError
from simulator.measure.run import measure
from simulator.measure.suite import MODELS, Case, case, device_for, model_of, suite_of
from simulator.measure.table import EXTRA, Measured, measured_case, read_table, table_text
from simulator.parallel.lower import kernels_of, shard_for
from simulator.validate.runs import COLUMNS, flags, read_runs

ALL = suite_of("full")


def test_the_full_suite_covers_what_the_project_promises() -> None:
    assert len(ALL) >= 60
    assert len({entry.name for entry in ALL}) == len(ALL)
    for model in ("gpt", "llama"):
        assert any(entry.strategy.sequence_parallel for entry in ALL if entry.model.startswith(model)), model
    for axis in ("tp", "cp", "ep", "dp", "pp", "vp"):
        assert any(getattr(entry.strategy, axis) > 1 for entry in ALL), axis
    assert {entry.strategy.devices for entry in ALL} == {1, 2, 4}
    assert {entry.strategy.zero for entry in ALL} >= {0, 1, 3}
    assert {entry.strategy.schedule for entry in ALL} >= {"gpipe", "1f1b", "interleaved"}
    assert {entry.strategy.recompute for entry in ALL} == {"none", "full"}
    assert {entry.model for entry in ALL} == set(MODELS)


def test_an_unknown_suite_or_model_names_the_nearest() -> None:
    with pytest.raises(InputError, match="tiny"):
        suite_of("tyny")
    with pytest.raises(InputError, match="gpt-9m"):
        model_of("gpt-9")


def _simulated_parameters(entry: Case) -> float:
    model = model_of(entry.model)
    framework = catalog.load_framework(entry.run.framework)
    kernels = kernels_of(model, entry.run, framework, entry.strategy)
    total = 0.0
    for index, stack in enumerate(model.stacks):
        shard = shard_for(model, entry.run, framework, entry.strategy, stack=index)
        segments = [(layer_segment(layer, model, shard=shard, kernels=kernels, name=""), count)
                    for layer, count in stack.runs]  # fmt: skip
        segments.append((norm_segment(model, stack, shard=shard, kernels=kernels), 1))
        if index == 0:
            segments += [(embedding_segment(model, shard=shard, kernels=kernels), 1),
                         (head_segment(model, shard=shard, kernels=kernels), 1)]  # fmt: skip
        total += sum(w.elements * count for segment, count in segments for op in segment.operations for w in op.weights)
    return total


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_measured_model_has_the_parameters_that_the_simulator_counts(model: str) -> None:
    import torch

    from simulator.measure.parallel import Groups, build_parts

    entry = case(model, 2, 64)
    lone = Groups(by_axis=dict.fromkeys(("tp", "cp", "dp", "pp", "ep", "edp", "dp_cp")), place={"pp": 0})
    with torch.device("meta"):
        parts = build_parts(entry, lone)
    assert sum(p.numel() for part in parts.values() for p in part.parameters()) == _simulated_parameters(entry)


def test_a_training_step_lowers_the_loss() -> None:
    import torch

    from simulator.measure.train import Trainer

    torch.manual_seed(1)
    trainer = Trainer(case("gpt-1m", 2, 32), 0)
    with torch.no_grad():
        before = float(trainer.parts[0](trainer.ids[0], trainer.ids[0]))
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-3
    for _ in range(5):
        trainer.step()
    with torch.no_grad():
        assert float(trainer.parts[0](trainer.ids[0], trainer.ids[0])) < 0.9 * before


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    turns = [{"cpu": 1.0 + turn, "wall": 2.0 + turn, "product": 3e-3, "memory": 1e-3} for turn in range(5)]
    row = measured_case("tiny", "gpt-1m b8 s128", [{"gpt-1m b8 s128": turns}] * 2, load=1.5, peak_memory_bytes=0.0)
    assert row.cpu_s == 6.0  # the median round of 3 s, on two ranks
    assert row.wall_s == 4.0
    assert row.spread_fraction == pytest.approx(4.0 / 6.0)
    path = tmp_path / "rows.csv"
    path.write_text(table_text([row]), encoding="utf-8")
    assert read_table(path) == [row]
    path.write_text("case,cpu_s\na,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="columns must be"):
        read_table(path)
    assert isinstance(row, Measured)


def test_a_gpus_suite_covers_its_variants() -> None:
    """One device: both precisions, both attentions, checkpointing, two optimizers; every model."""
    cases = suite_of("gpu")
    assert len({entry.name for entry in cases}) == len(cases)
    assert {entry.strategy.devices for entry in cases} == {1}
    for precision in ("fp32", "bf16"):
        held = [entry for entry in cases if entry.run.precision == precision]
        assert {entry.model for entry in held} == set(MODELS) - {"gpt-1m"}
        assert {entry.run.attention for entry in held} == {"", "unfused"}
        assert {entry.strategy.recompute for entry in held} == {"none", "full"}
    assert {entry.run.optimizer for entry in cases} == {"adamw", "sgd"}
    assert (device_for("gpu"), device_for("full")) == ("cuda", "cpu")


def test_a_gpus_suite_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device"):
        measure("gpu")


def test_optimizers_of_the_suite_update() -> None:
    """Plain momentum moves a parameter by lr times its gradient, AdamW's first step by about lr whatever it is."""
    import torch

    from simulator.measure.train import optimizer_of

    for name, moved in (("sgd", 1e-4 * 5.0), ("adamw", 1e-4)):
        value = torch.nn.Parameter(torch.zeros(3))
        value.grad = torch.full((3,), 5.0)
        optimizer_of(name, [value]).step()
        assert value.detach().neg().tolist() == pytest.approx([moved] * 3, rel=1e-4)


@pytest.mark.parametrize("suite", ["tiny", "single", "full", "bf16", "gpu"])
def test_every_row_is_one_of_the_table_of_runs_with_columns_after_it(suite: str, tmp_path: Path) -> None:
    """Read with the reader of published runs, a row says the case again: degrees, batch, dimensions, time, peak."""
    turn = {"cpu": 2.5, "wall": 1.25, "product": 3e-3, "memory": 1e-3}
    cases = suite_of(suite)
    rows = [measured_case(suite, entry.name, [{entry.name: [turn] * 3}] * entry.strategy.devices, load=0.0,
                          peak_memory_bytes=2.0**28) for entry in cases]  # fmt: skip
    table = list(csv.reader(io.StringIO(table_text(rows))))
    assert table[0][len(COLUMNS) :] == list(EXTRA)
    path = tmp_path / "runs.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([line[: len(COLUMNS)] for line in table])
    runs = read_runs([path])
    assert len(runs) == len(cases)
    for run, entry in zip(runs, cases, strict=True):
        s = entry.strategy
        for name in ("tp", "cp", "pp", "dp", "ep", "vp", "zero"):
            assert getattr(run, name) == getattr(s, name), (entry.name, name)
        assert run.sp == s.sequence_parallel
        assert (run.micro_batch, run.global_batch, run.seq_len) == (
            s.micro_batch, entry.run.global_batch, entry.run.seq_len)  # fmt: skip
        assert (run.step_time_s, run.peak_memory_bytes, run.precision) == (1.25, 2.0**28, entry.run.precision)
        assert flags(run) == ()
    sizes = {run.model: (run.layers, run.hidden, run.vocab, run.experts, run.gated) for run in runs}
    known = {"gpt-1m": (4, 128, 2048, None, False), "t5-13m": (8, 256, 8192, None, False),
             "switch-20m": (6, 256, 4096, 8, False), "llama-15m": (6, 384, 8192, None, True)}  # fmt: skip
    assert {name: sizes[name] for name in known if name in sizes} == {n: v for n, v in known.items() if n in sizes}


def test_calibration_never_sees_a_training_step(root: Path) -> None:
    code = ("import sys, simulator.calibrate.machine, simulator.calibrate.worker, simulator.calibrate.network; "
            "print([name for name in sys.modules if name.startswith('simulator.measure')])")  # fmt: skip
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
