"""How often something that costs other callers may be done: a token bucket for each name."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MOST_NAMES = 10_000  # 1 MB; the longest unused is forgotten first, and has a full bucket by then


class Rate:
    """So many at once, and then so many a second, by name."""

    def __init__(self, burst: int, per_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._per_s, self._now = burst, per_s, now
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens that are out, and as of when

    def left(self, name: str) -> float:
        """Returns 0 if there is one now, or in how many seconds there is; takes none."""
        now = self._now()
        used, since = self._used.get(name, (0.0, now))
        return max(used - (now - since) * self._per_s + 1 - self._burst, 0.0) / self._per_s

    def take(self, name: str) -> float:
        """Take one. Returns 0, or in how many seconds there is another one when there is none now."""
        wait_s = self.left(name)
        now = self._now()
        used, since = self._used.pop(name, (0.0, now))
        used = max(used - (now - since) * self._per_s, 0.0)
        self._used[name] = (used if wait_s else used + 1, now)
        if len(self._used) > MOST_NAMES:
            self._used.popitem(last=False)
        return wait_s
