"""Power of a device with its share of the system around it; energy and carbon of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.spec.hardware import Device

SYSTEM_OVER_TDP = 1.10
"""Mean power of an accelerator with its share of host, memory and network, over its board power: 330 W measured per
V100 of 300 W (Patterson 2021 Table 4, GPT-3)."""
DEFAULT_PUE = 1.10
"""Power of the building over that of the machines: 1.09 to 1.12 in Patterson 2021 Table 4."""
DEFAULT_CARBON_KG_PER_KWH = 0.429
"""Mean of the grid of the United States, 2020 (Patterson 2021 Table 4, GPT-3's column)."""
MEASURED_WATTS = {
    "tpu-v3": (288.0, "Patterson 2021 Table 4: 310 W (T5), 288 W (GShard), 245 W (Switch); the middle one"),
    "tpu-v4": (326.0, "GLaM (Du 2022), from a secondary reading; PaLM's appendix B has 378.5 W"),
    "v100-sxm2-16gb": (330.0, "Patterson 2021 Table 4, GPT-3"),
    "v100-sxm2-32gb": (330.0, "Patterson 2021 Table 4, GPT-3"),
}
"""Measured mean system power per accelerator while training [W], by device."""
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Mean power of one device with its share of the system [W], and where the number is from."""

    watts: float
    kind: str
    """measured, assumed or given."""
    source: str


def power_of(device: Device, given_watts: float | None = None) -> Power | None:
    """Mean power of a training device; None where nothing is known of it.

    Given, else measured for that device, else 1.10 times its board power (see SYSTEM_OVER_TDP).
    """
    if given_watts is not None:
        return Power(watts=given_watts, kind="given", source="given")
    if device.name in MEASURED_WATTS:
        watts, source = MEASURED_WATTS[device.name]
        return Power(watts=watts, kind="measured", source=source)
    if not device.tdp_watts:
        return None
    source = (
        f"{SYSTEM_OVER_TDP} x board power of {device.tdp_watts:g} W; the ratio is 330 W per V100 of 300 W "
        "(Patterson 2021 Table 4)"
    )
    return Power(watts=SYSTEM_OVER_TDP * device.tdp_watts, kind="assumed", source=source)


def mean_power(devices: Sequence[Device], given_watts: float | None = None) -> Power | None:
    """`power_of` of devices that may be unequal: their mean; None where nothing is known of one of them."""
    each = [power_of(device, given_watts) for device in devices]
    known = [power for power in each if power is not None]
    if len(known) < len(each):
        return None
    kinds, sources = (list(dict.fromkeys(parts)) for parts in (
        [power.kind for power in known], [power.source for power in known]
    ))  # fmt: skip
    return Power(watts=sum(power.watts for power in known) / len(known), kind=" and ".join(kinds),
                 source="; ".join(sources))  # fmt: skip


def energy_kwh(device_hours: float, watts: float, pue: float = DEFAULT_PUE) -> float:
    """Energy drawn by the building [kWh]: device hours x power x PUE.

    >>> round(energy_kwh(1024 * 27 * 24, 245.0, 1.10) / 1e3)  # Switch-C in Patterson 2021: 179 MWh
    179
    """
    return device_hours * watts * pue / 1e3


def carbon_kg(energy_kwh: float, kg_per_kwh: float = DEFAULT_CARBON_KG_PER_KWH) -> float:
    """Carbon dioxide equivalent [kg] of energy.

    >>> round(carbon_kg(1287e3) / 1e3)  # GPT-3 in Patterson 2021: 552 t
    552
    """
    return energy_kwh * kg_per_kwh
