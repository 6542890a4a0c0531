"""Numbers of devices as a user types them: 256..16384 doubles, 512..1024:64 goes in steps, commas join."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from simulator.errors import Complaints, InputError, Problem

MOST_COUNTS = 200
_COUNTS = re.compile(r"(\d{1,9})(?:\.\.(\d{1,9})(?::(\d{1,9}))?)?")


def counts_of(text: str, where: str = "--devices") -> tuple[int, ...]:
    """Numbers of devices: "256..16384" doubles from the first to the last, "512..1024:64" goes in steps of 64, and
    commas join. Raises InputError with every part that cannot be read.

    >>> counts_of("256..1024,1536"), counts_of("64..160:32")
    ((256, 512, 1024, 1536), (64, 96, 128, 160))
    """
    complaints = Complaints()
    found: set[int] = set()
    for part in text.split(","):
        match = _COUNTS.fullmatch(part.strip())
        low, high, step = (int(number or 0) for number in match.groups()) if match else (0, 0, 0)
        if low < 1 or (match and match[2] and high < low) or (match and match[3] and step < 1):
            complaints.add(f"{part!r} is no count or range of counts.", where=where,
                           hint="Write 256..16384, 512..1024:64 or 256,384,512.")  # fmt: skip
            continue
        found |= set(_ladder(low, max(low, high), step))
    complaints.raise_if_any()
    if len(found) > MOST_COUNTS:
        raise InputError([Problem(f"{len(found):,} counts are more than {MOST_COUNTS}.", where)])
    return tuple(sorted(found))


def _ladder(low: int, high: int, step: int) -> Iterable[int]:
    """The counts of one range, its last included; at most a few more than may be asked for."""
    if step:
        yield from itertools.islice(range(low, high, step), MOST_COUNTS)
    else:
        count = low
        while count < high:
            yield count
            count *= 2
    yield high
