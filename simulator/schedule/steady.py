"""The repeating middle of an order: where its graph, node by node, is the same again some nodes later.

A pipeline's long middle repeats (1F1B: one forward and one backward per rank, interleaved: a group of micro-batches
through all virtual stages). The engine's recurrence of maxima and additions there is one linear map of the (max, +)
algebra applied again and again: once its state has moved by the same time everywhere, it does so for ever (Baccelli,
Cohen, Olsder and Quadrat 1992, "Synchronization and Linearity", sec. 3.7). So the engine runs the middle until that
happens and writes down the rest. Found from the graph alone, for orders of the user's own as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_NODES = 400
"""Fewer nodes run faster than their repetition is found."""
_LEAST_PERIODS = 4
_ANCHORS = (0.25, 0.5, 0.75)
"""Where to look for a repetition, as fractions of the nodes: GPipe repeats its forwards, then its backwards."""
_QUICK = 16
_MOST_CANDIDATES = 2000

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Zone:
    """Nodes first : stop, each like the one `period` nodes before it from first + period on."""

    first: int
    stop: int
    period: int
    lookback: int
    """How many nodes back the outputs are that nodes of the zone read, at most."""
    reach: int
    """How many nodes back from `stop` the outputs are that later nodes read, at most."""


def steady_zones(signature: Ints, reads: Ints) -> tuple[Zone, ...]:
    """Zones that repeat at least four times, in running order and disjoint.

    `signature` holds one number per node, equal where nodes do the same on the same rank with the same distance to
    what they read; `reads` the node whose output each node reads, less than 0 for none.
    """
    nodes = len(signature)
    zones: list[Zone] = []
    if nodes < LEAST_NODES:
        return ()
    for fraction in _ANCHORS:
        anchor = int(fraction * nodes)
        if zones and anchor < zones[-1].stop:
            continue
        period = _period(signature, anchor)
        if not period:
            continue
        zone = _zone(signature, reads, anchor, period, zones[-1].stop if zones else 0)
        if zone.stop - zone.first >= _LEAST_PERIODS * period:
            zones.append(zone)
    return tuple(zones)


def _period(signature: Ints, anchor: int) -> int:
    """The fewest nodes after which what follows `anchor` is as before; 0 for none."""
    later = np.flatnonzero(signature[anchor + 1 :] == signature[anchor])[:_MOST_CANDIDATES] + 1
    later = later[anchor + 2 * later <= len(signature)]
    quick = np.arange(_QUICK)
    for step in later.tolist():
        some = anchor + quick * step // _QUICK
        if np.array_equal(signature[some], signature[some + step]) and np.array_equal(
            signature[anchor : anchor + step], signature[anchor + step : anchor + 2 * step]
        ):
            return int(step)
    return 0


def _zone(signature: Ints, reads: Ints, anchor: int, period: int, after: int) -> Zone:
    differs = np.flatnonzero(signature[period:] != signature[:-period])
    split = int(np.searchsorted(differs, anchor))
    first = max(int(differs[split - 1]) + 1 if split else 0, after)
    stop = (int(differs[split]) if split < len(differs) else len(signature) - period) + period
    node = np.arange(first, stop)
    read = reads[first:stop]
    later = reads[stop:]
    early = later[(later >= 0) & (later < stop)]
    return Zone(
        first=first, stop=stop, period=period,
        lookback=int(np.where(read >= 0, node - read, 0).max()),
        reach=stop - int(early.min()) if len(early) else 0,
    )  # fmt: skip
