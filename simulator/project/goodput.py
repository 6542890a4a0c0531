"""Failures: how often a job of many devices stops, how often to save, and what share of the time is progress.

Failures are independent and memoryless: a job of n devices fails on average every M = m / n (m of one device). After
one, `recovery_s` passes (detection and restart), and work since the last safe checkpoint is done again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from simulator.errors import Complaints

HOUR_S = 3600.0
LLAMA3_DEVICE_MTBF_S = 16_384 * 54 * 24 / 419 * HOUR_S
"""50.7 thousand hours per H100: 419 unexpected interruptions in 54 days on 16,384 (Llama 3 paper, Table 5)."""
RSC_DEVICE_MTBF_S = 1024 * 7.9 * HOUR_S
"""8.1 thousand hours per A100: mean time to failure of 7.9 h measured at 1,024 (arXiv 2410.21680)."""
BLOOM_DEVICE_MTBF_S = 384 * 7 * 24 * HOUR_S
"""64.5 thousand hours per A100: one failed device a week on 384 (bigscience chronicles)."""
OPT_DEVICE_MTBF_S = 8 * 124 / 2 * 24 * HOUR_S
"""11.9 thousand hours per A100: two machines of 8 fail a day at 124 nodes (metaseq chronicles)."""
DEVICE_MTBF_S = {
    "llama3": LLAMA3_DEVICE_MTBF_S,
    "rsc": RSC_DEVICE_MTBF_S,
    "bloom": BLOOM_DEVICE_MTBF_S,
    "opt": OPT_DEVICE_MTBF_S,
}
"""Measured mean time between failures of one device, every cause that stopped its job included [s]."""
DETECTION_S = 600.0
"""torch's default timeout of a NCCL collective: 10 minutes (torch.distributed.init_process_group). Tools that watch
heartbeats need seconds."""
MOST_FAILURES = 600.0
"""Expected failures while one segment runs and recovers, beyond which the job stands still."""
RESTART_S = 300.0
"""Assumed: schedule, start the processes, read the checkpoint, build communicators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Shares of wall-clock time; they sum to 1. `useful_fraction` is progress that is kept."""

    useful_fraction: float
    saving_fraction: float
    """Training stands still for a checkpoint."""
    redoing_fraction: float
    """Work lost to failures."""
    recovering_fraction: float
    """Detection and restart."""
    waiting_fraction: float
    """No spare node: waiting for a repair."""
    straggling_fraction: float
    """Waiting for the slowest device."""
    interval_s: float
    """Useful work between two checkpoints."""
    job_mtbf_s: float

    @property
    def failures_per_day(self) -> float:
        return 86400.0 / self.job_mtbf_s


def job_mtbf_s(device_mtbf_s: float, devices: int) -> float:
    """Mean time between failures of a job [s]: m / n.

    Meta's cluster failed 3.7 times as often at 1,024 devices as its own 1 / n projection from larger jobs says, so
    measure yours.

    >>> round(job_mtbf_s(LLAMA3_DEVICE_MTBF_S, 16_384) / 3600, 2)
    3.09
    """
    return device_mtbf_s / devices


def young_interval_s(save_s: float, mtbf_s: float) -> float:
    """First-order interval between checkpoints [s]: sqrt(2 C M) (Young 1974; Daly 2006).

    >>> round(young_interval_s(40.0, 3.09 * 3600))
    943
    """
    return math.sqrt(2.0 * save_s * mtbf_s)


def daly_interval_s(save_s: float, mtbf_s: float) -> float:
    """Daly 2006's higher-order interval of work between checkpoints [s].

    sqrt(2 C M) (1 + sqrt(C / 2M) / 3 + C / 18M) - C for C < 2 M, else M.
    """
    if save_s >= 2.0 * mtbf_s:
        return mtbf_s
    half = save_s / (2.0 * mtbf_s)
    return young_interval_s(save_s, mtbf_s) * (1.0 + math.sqrt(half) / 3.0 + half / 9.0) - save_s


def optimal_interval_s(save_s: float, mtbf_s: float) -> float:
    """The interval of work that minimises the expected time of memoryless failures, exactly [s].

    e^(x + c) (1 - x) = 1 with x = t / M, c = C / M (Daly 2006 eq. 19): x = 1 + W(-e^(-1 - c)), by bisection.
    Without cost to save it is 0: save all the time.
    """
    cost = save_s / mtbf_s
    low, high = 0.0, math.nextafter(1.0, 0.0)
    for _ in range(200):
        middle = (low + high) / 2.0
        # log1p keeps its digits where x is small.
        if middle + cost + math.log1p(-middle) > 0.0:
            low = middle
        else:
            high = middle
    return low * mtbf_s


def first_order_loss(interval_s: float, save_s: float, mtbf_s: float, recovery_s: float = 0.0) -> float:
    """Share of time lost, to first order: C / t + (t / 2 + R) / M.

    >>> round(first_order_loss(943.0, 40.0, 3.09 * 3600), 3)
    0.085
    """
    return save_s / interval_s + (interval_s / 2.0 + recovery_s) / mtbf_s


def spread_slowdown(spread_fraction: float, devices: int) -> float:
    """Expected step time over the mean device's, when each device's speed varies with a relative deviation.

    A synchronous step waits for the slowest of n: 1 + sigma times the expected maximum of n normal deviates, by
    Blom 1958's quantile (n - 0.375) / (n + 0.25). Exactly 1 for one device.

    >>> round(spread_slowdown(0.01, 1024), 3)
    1.032
    """
    if devices == 1:
        return 1.0
    return 1.0 + spread_fraction * NormalDist().inv_cdf((devices - 0.375) / (devices + 0.25))


def share_waiting(nodes: int, spare_nodes: int, node_mtbf_s: float, repair_s: float) -> float:
    """Share of time in which more nodes are in repair than there are spares.

    Nodes in repair are Poisson with mean nodes x repair / MTBF (M/G/infinity: any distribution of repair times).
    """
    mean = nodes * repair_s / node_mtbf_s
    if mean > 700.0:
        # e^-mean underflows; with fewer spares than that the job practically never runs.
        return 0.0 if spare_nodes > mean + 10.0 * math.sqrt(mean) else 1.0
    term = total = math.exp(-mean)
    for busy in range(1, spare_nodes + 1):
        term *= mean / busy
        total += term
        if busy > mean and term < 1e-18:
            break
    return max(0.0, 1.0 - total)


def spares_for(nodes: int, node_mtbf_s: float, repair_s: float, limit_fraction: float = 0.001) -> int:
    """The fewest spare nodes with which a job waits for repairs at most that share of the time."""
    spare = 0
    while spare < nodes and share_waiting(nodes, spare, node_mtbf_s, repair_s) > limit_fraction:
        spare += 1
    return spare


def goodput(
    *,
    job_mtbf_s: float,
    save_s: float,
    recovery_s: float,
    lag_s: float = 0.0,
    interval_s: float | None = None,
    slowdown_factor: float = 1.0,
    waiting_fraction: float = 0.0,
) -> Goodput:
    """Shares of time of a job with memoryless failures.

    A segment of t useful seconds and C of saving takes E = M (e^((t + C) / M) - 1) e^(R / M) on average, restarts that
    fail included (Daly 2006 eq. 13). `lag_s` is how long after training went on a checkpoint is safe (asynchronous
    writing): that much more is redone after a failure, so it adds to R. `interval_s` None is the exact optimum (but one
    checkpoint is safe before the next begins); `slowdown_factor` is the straggling factor, `waiting_fraction` the share
    of time without enough nodes.
    Raises InputError for times that are not positive where they must be.
    """
    _check(job_mtbf_s=job_mtbf_s, save_s=save_s, recovery_s=recovery_s + lag_s, interval_s=interval_s)
    work_s = interval_s if interval_s is not None else max(optimal_interval_s(save_s, job_mtbf_s), lag_s)
    useful, saving, redoing, recovering = _shares(
        work_s / job_mtbf_s, save_s / job_mtbf_s, (recovery_s + lag_s) / job_mtbf_s
    )
    lag_share = lag_s / (recovery_s + lag_s) if lag_s else 0.0
    running = 1.0 - waiting_fraction
    kept = running * useful / slowdown_factor
    return Goodput(
        useful_fraction=kept,
        saving_fraction=running * saving,
        redoing_fraction=running * (redoing + recovering * lag_share),
        recovering_fraction=running * recovering * (1.0 - lag_share),
        waiting_fraction=waiting_fraction,
        straggling_fraction=running * useful - kept,
        interval_s=work_s,
        job_mtbf_s=job_mtbf_s,
    )


def _shares(work: float, save: float, back: float) -> tuple[float, float, float, float]:
    """Useful, saving, redoing, recovering, for times in units of the mean time between failures."""
    span = work + save
    if span + back > MOST_FAILURES:
        # e^600: nothing is ever finished.
        return 0.0, 0.0, 1.0, 0.0
    kept = math.exp(-back)
    if span == 0.0:
        # Saved all the time at no cost: only recovery is lost.
        return kept, 0.0, 0.0, 1.0 - kept
    total = math.expm1(span) / kept
    return work / total, save / total, kept * (1.0 - span / math.expm1(span)), 1.0 - kept


def _check(*, job_mtbf_s: float, save_s: float, recovery_s: float, interval_s: float | None) -> None:
    complaints = Complaints()
    complaints.require(0 < job_mtbf_s < math.inf, f"the mean time between failures is {job_mtbf_s:g} s, not positive.")
    complaints.require(0 <= save_s < math.inf, f"saving takes {save_s:g} s, which is negative or no number.")
    complaints.require(0 <= recovery_s < math.inf, f"recovery takes {recovery_s:g} s, which is negative or no number.")
    complaints.require(interval_s is None or 0 < interval_s < math.inf,
                       f"an interval of {interval_s} s between checkpoints is not positive.")  # fmt: skip
    complaints.raise_if_any()
