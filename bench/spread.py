"""The form of every measured figure of a benchmark: its least, median and greatest value over the repeats."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

Spread = dict[str, float]


def spread(values: Iterable[float]) -> Spread:
    """`min`, `median` and `max`; empty when there is no value, because a part may have nothing to measure."""
    found = [float(value) for value in values]
    return {"min": min(found), "median": statistics.median(found), "max": max(found)} if found else {}
