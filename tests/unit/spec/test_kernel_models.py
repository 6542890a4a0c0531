"""Which kernel constants a device takes, and that the calibration files hold what the formulas read."""

from dataclasses import replace

import pytest

from simulator.arch.operations import Gemm
from simulator.catalog import load_device, names
from simulator.cluster.device import gemm_time_s
from simulator.parallel.timing import _sustained
from simulator.spec.kernels import (
    KernelModel,
    PowerLimit,
    assumed_model,
    kernel_model_for,
    scaled_products,
    sustained_slowdown,
)

FITTED = KernelModel(constants={"pointwise": {}}, provenance="fitted", source="tables", residuals={"gemm.bf16": {}})


def test_a_device_takes_its_own_then_its_generations_then_stated_defaults():
    by_generation = {"hopper": FITTED}
    assert kernel_model_for("hopper", "h100-sxm-80gb", by_generation) is FITTED
    assert kernel_model_for("hopper", "h20", {**by_generation, "h20": FITTED}) is FITTED
    inherited = kernel_model_for("hopper", "h200-sxm-141gb", by_generation)
    assert (inherited.provenance, inherited.constants, inherited.residuals) == ("inherited", FITTED.constants, {})
    assert "h100-sxm-80gb" in inherited.source
    assert kernel_model_for("tpu", "tpu-v4", by_generation).provenance == "assumed"


@pytest.mark.parametrize("name", names("devices"))
def test_every_device_has_every_constant_that_its_formulas_read(name):
    constants = load_device(name).kernels.constants
    expected = assumed_model("any").constants
    for key in constants:
        family = key.split(".")[0]
        assert set(constants[key]) == set(expected.get(key, expected.get(f"{family}.bf16", {})))
    assert set(expected) <= set(constants)


@pytest.mark.parametrize(
    ("name", "median"), [("a100-sxm-80gb", 0.04), ("h100-sxm-80gb", 0.04), ("b200-sxm-180gb", 0.046)]
)
def test_residuals_of_the_fit_are_within_the_aims(name, median):
    """B200's library picks kernels whose times differ by 7 % (median) between m and m + 1, and their errors share
    little (hardware/README.md, tools/gemm_floor.py): no smooth formula can follow them."""
    residuals = load_device(name).kernels.residuals
    assert residuals["gemm.bf16"]["mean"] <= 0.07
    assert residuals["gemm.bf16"]["median"] <= median
    assert residuals["attention.bf16"]["mean"] <= 0.12
    assert residuals["grouped_gemm.bf16"]["mean"] <= 0.15
    assert residuals["gemm.bf16"]["rows"] > 6000


@pytest.mark.parametrize("name", ["a100-sxm-80gb", "h100-pcie-80gb", "gb200", "gb300"])
def test_a_higher_peak_shortens_products_under_a_power_limit_too(name: str) -> None:
    """A what-if on the matrix peak is no higher clock: it is felt whole by products that run on and on."""
    device = load_device(name)
    better = replace(device, peak_flops_per_s={kind: 1.1 * peak for kind, peak in device.peak_flops_per_s.items()})
    work = Gemm(m=16384, n=16384, k=16384, dtype="bf16")
    cold = [float(gemm_time_s(replace(d, kernels=d.kernels.cold()), "bf16", m=work.m, n=work.n, k=work.k))
            for d in (device, better)]  # fmt: skip
    hot = [float(_sustained([work], [seconds], d)[0]) for seconds, d in zip(cold, (device, better), strict=True)]
    assert hot[0] > cold[0]
    assert hot[1] < hot[0] / 1.05


def test_the_limit_holds_a_siblings_clock_whatever_its_datasheet_says() -> None:
    """GB200 of 152 units at 1,200 W and a datasheet clock 1.082 times B200's (148 units, 1,000 W): per unit 1.168 times
    the power, so 1.053 times the clock, 1.027 times slower against its own datasheet."""
    constants = {"throttle": 0.1, "throttle_time_s": 1e-3, "throttle_power": 4.0, "throttle_drift": 0.0}
    own, measured = PowerLimit(1200.0, 152, 1.082), PowerLimit(1000.0, 148)
    share = sustained_slowdown(constants, own, measured) / sustained_slowdown(constants)
    assert share == pytest.approx(1.082 / (1.2 * 148 / 152) ** (1 / 3), rel=1e-12)
    assert share == pytest.approx(1.027, abs=5e-4)


def test_large_products_of_a_sibling_run_as_fast_as_they_were_measured() -> None:
    """GB200's were measured 1.037 times as fast as B200's, for 1.111 times the peak, short or on and on; B300's 1.01
    times. GB300, which no table has, follows the cube root of its power: 152 of 148 units at 1.109 times the clock."""
    work = Gemm(m=65536, n=65536, k=65536, dtype="bf16")

    def seconds(name: str) -> tuple[float, float]:
        device = load_device(name)
        cold = replace(device, kernels=device.kernels.cold())
        short = float(gemm_time_s(cold, "bf16", m=work.m, n=work.n, k=work.k))
        return short, float(_sustained([work], [short], device)[0])

    measured = seconds("b200-sxm-180gb")
    for name, factor in (("gb200", 1.037), ("b300-sxm-288gb", 1.01)):
        quicker = [b / own for b, own in zip(measured, seconds(name), strict=True)]
        assert quicker == pytest.approx([factor] * 2, rel=2e-3)
    power = 152 / 148 * (1.4 * 148 / 152) ** (1 / 3)
    assert measured[1] / seconds("gb300")[1] == pytest.approx(power, rel=2e-3)


def test_the_speed_of_products_is_that_of_matrix_kernels_only() -> None:
    model = KernelModel(
        constants={"gemm.bf16": {"efficiency": 0.8, "latency_s": 1e-6}, "pointwise": {"memory_efficiency": 0.7}},
        provenance="inherited", source="tables",
    )  # fmt: skip
    scaled = scaled_products(model, "ampere", PowerLimit(300.0, 54, 1.6), 0.9)
    assert scaled.constants["pointwise"] == model.constants["pointwise"]
    assert scaled.constants["gemm.bf16"] == {"efficiency": pytest.approx(0.8 * 0.9 / 0.8), "latency_s": 1e-6}
    assert scaled.source == "tables; large products 0.9 times as fast"
