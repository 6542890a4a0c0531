"""The catalogue's device for a name as measured tables write it."""

from __future__ import annotations

from simulator.catalog import load_device, names
from simulator.errors import InputError, Problem, did_you_mean
from simulator.spec.hardware import Device


def measured_device(name: str) -> Device:
    """The device called `name` ("a100_sxm", "A100-SXM-80GB", "V100") in the catalogue, by name, alias or beginning.

    Of several that begin so the largest memory, and a memory size that the catalogue lacks is left off
    ("GH200-120GB"). Raises InputError when none is meant.
    """
    wanted = name.lower()
    try:
        return load_device(wanted)
    except InputError:
        pass
    dashed = wanted.replace("_", "-")
    for start in (dashed, dashed.rpartition("-")[0]):
        found = [device for device in names("devices") if start and f"{device}-".startswith(f"{start}-")]
        if found:
            return max((load_device(device) for device in found), key=lambda device: device.memory_bytes)
    hint = did_you_mean(dashed, names("devices"))
    raise InputError([Problem(f"no device of the catalogue is {name}.", "device", hint)])
