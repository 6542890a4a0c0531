"""On which machine of the catalogue a published run was made, where its source says so."""

from __future__ import annotations

import re

from simulator.validate.runs import PublishedRun

_SOURCES = (
    # train/tr11-176B-ml/README.md and experiments/gpt2.md: Jean Zay (IDRIS). A 16 GB V100 stands in nodes of the same
    # four devices as the 32 GB one.
    (r"bigscience-workshop/bigscience", {
        "a100-sxm-80gb": "jean-zay-a100", "v100-sxm2-32gb": "jean-zay-v100", "v100-sxm2-16gb": "jean-zay-v100",
    }),
)  # fmt: skip


def machine_of(run: PublishedRun) -> str:
    """The catalogue's cluster that the source ran on; empty where the source does not say."""
    named = (by_device for pattern, by_device in _SOURCES if re.search(pattern, run.source))
    return next(named, {}).get(run.device or "", "")
