"""Two reference kernels that tell how fast the machine is at the moment: the same in calibration and in measurement.

A shared processor drifts by 10 % and more with what its neighbours do. Timing the same two kernels beside everything
else separates that drift from a prediction's own error.
"""

from __future__ import annotations

import torch

from simulator.calibrate.devices import Host, Measured


class Reference:
    """A product that fits a cache, and a sum that does not."""

    def __init__(self, device: Measured | None = None) -> None:
        self.device = device or Host()
        self.a, self.b = torch.ones(512, 512), torch.ones(512, 512)
        self.x, self.y = torch.ones(4_000_000), torch.ones(4_000_000)

    def seconds(self) -> dict[str, float]:
        """Seconds of each on its device."""
        return {"product": self.device.seconds(self._products) / 8, "memory": self.device.seconds(self._sums) / 3}

    def _products(self) -> None:
        for _ in range(8):
            torch.mm(self.a, self.b)

    def _sums(self) -> None:
        for _ in range(3):
            torch.add(self.x, self.y, out=self.x)
