"""Which kernel constants a device takes, and that the calibration files hold what the formulas read."""

import pytest

from simulator.catalog import load_device, names
from simulator.spec.kernels import KernelModel, assumed_model, kernel_model_for

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
    """B200's library picks kernels that differ by 7.7 % (median) between m and m + 1: no formula can follow them."""
    residuals = load_device(name).kernels.residuals
    assert residuals["gemm.bf16"]["mean"] <= 0.07
    assert residuals["gemm.bf16"]["median"] <= median
    assert residuals["attention.bf16"]["mean"] <= 0.12
    assert residuals["grouped_gemm.bf16"]["mean"] <= 0.15
    assert residuals["gemm.bf16"]["rows"] > 6000
