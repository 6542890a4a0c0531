"""Devices that are measured: a GPU is stood for by an object with torch.cuda's calls and a clock set by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from simulator import catalog
from simulator.calibrate.devices import Cuda, Host, device_of
from simulator.calibrate.fit import Fitted
from simulator.calibrate.kernels import benches
from simulator.calibrate.machine import calibrate, document, fingerprint
from simulator.calibrate.reference import Reference
from simulator.calibrate.worker import copies_of, time_bench
from simulator.calibrate.write import toml_text
from simulator.errors import InputError


class FakeCuda:
    """Queued work takes 2 ms between two events; a step holds 3 MiB."""

    def __init__(self, capability: tuple[int, int] = (9, 0)) -> None:
        self.capability, self.recorded, self.synchronised, self.held = capability, 0, 0, 0

    def is_available(self) -> bool:
        return True

    def Event(self, *, enable_timing: bool) -> Any:  # noqa: N802 - torch.cuda's name
        assert enable_timing, "an event without timing cannot be asked"
        return SimpleNamespace(record=self._record, synchronize=self.synchronize, elapsed_time=lambda _: 2.0)

    def _record(self) -> None:
        self.recorded += 1

    def synchronize(self) -> None:
        self.synchronised += 1

    def reset_peak_memory_stats(self) -> None:
        self.held = 0

    def max_memory_allocated(self) -> int:
        return 3 * 2**20

    def get_device_properties(self, index: int) -> Any:
        assert index == 0
        return SimpleNamespace(name="NVIDIA H100", major=self.capability[0], minor=self.capability[1],
                               total_memory=80 * 2**30)  # fmt: skip


def test_a_device_is_timed_between_two_events_it_waited_for() -> None:
    fake, ran = FakeCuda(), []
    device = Cuda(fake)
    assert device.seconds(lambda: ran.append(1)) == 2e-3
    assert (ran, fake.recorded, fake.synchronised) == ([1], 2, 1)
    assert device.peak_bytes(lambda: ran.append(2)) == 3 * 2**20
    assert ran == [1, 2]


def test_benches_and_reference_kernels_are_timed_on_the_device_they_are_given() -> None:
    """Two milliseconds a pass: the mean over its copies, whatever the processor takes."""
    fake = FakeCuda()
    bench = min(benches("fp32", quick=True), key=lambda each: each.work)
    copies = copies_of(bench, 1e4)
    forward, backward = time_bench(bench, copies, Cuda(fake))
    assert forward == pytest.approx(2e-3 / len(copies))
    assert backward is None or backward == pytest.approx(2e-3 / len(copies))
    assert Reference(Cuda(fake)).seconds() == pytest.approx({"product": 2e-3 / 8, "memory": 2e-3 / 3})


def test_the_processor_is_timed_by_its_own_seconds() -> None:
    assert 0.0 <= Host().seconds(lambda: sum(range(1000))) < 1.0
    assert device_of("cpu").name == "cpu"
    assert device_of("cuda", FakeCuda()).name == "cuda"


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device"):
        calibrate(device="cuda")


def test_an_unknown_generation_is_refused() -> None:
    with pytest.raises(InputError, match=r"compute capability 3\.5"):
        Cuda(FakeCuda((3, 5))).hardware()


def test_a_gpu_becomes_a_device_of_its_generation(tmp_path: Path) -> None:
    """Its file is one rank without collectives, and every command reads it."""
    hardware = Cuda(FakeCuda()).hardware()
    points = [[1e3, 1e-6], [1e8, 1e-3]]
    product = {"call_s": 5e-6, "mnk_s": 4e-14, "mk_s": 0.0, "kn_s": 0.0, "mn_s": 0.0}
    fitted = Fitted(sums={"gemm.fp32": product, "batched_gemm.fp32": product}, residuals={}, spread_fraction=0.01,
                    curves={"plain": points, "lookup": points, "lookup_grad": points})  # fmt: skip
    machine = fingerprint(hardware) | {"date": "2026-01-01", "ranks": 1, "wall_s": 1.0, "load_before": 0.0,
                                       "load_after": 0.0, "spread_fraction": 0.01,
                                       "reference_s": {"product": 1e-3, "memory": 1e-3}}  # fmt: skip
    path = tmp_path / "gpu.toml"
    path.write_text(toml_text(document(fitted, [], machine, ("fp32",), hardware)), encoding="utf-8")
    cluster = catalog.load_cluster(str(path))
    assert (cluster.devices, cluster.device.generation, cluster.device.vendor) == (1, "hopper", "NVIDIA")
    assert cluster.device.memory_bytes == 80 * 2**30
    assert cluster.device.peak_flops_per_s["fp32"] == pytest.approx(5e13)
