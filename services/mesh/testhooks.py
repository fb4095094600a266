"""Faults that tests ask a service for: steps that are late, a clock that is wrong.

They are set by environment variables that no `--help` shows and that no manifest may set (scripts/check_manifests.py
refuses names it does not know). Without them nothing here is called.

    MOSHIMESH_TEST_DELAY=lm:compute:50:120,encode:queue:20:30
        every 50th tick of the batcher `lm` computes 120 ms longer, and every 20th of `encode` begins 30 ms later
    MOSHIMESH_TEST_CLOCK_SHIFT_MS=500
        the process's clock is 500 ms ahead
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

log = logging.getLogger(__name__)

DELAY = "MOSHIMESH_TEST_DELAY"
CLOCK_SHIFT_MS = "MOSHIMESH_TEST_CLOCK_SHIFT_MS"


@dataclass(frozen=True)
class TickDelay:
    """Makes some ticks of a batcher late."""

    batcher: str
    part: str
    every: int
    delay_s: float

    @classmethod
    def of(cls, batcher: str) -> list[TickDelay]:
        """What the environment asks for this batcher."""
        asked = (text.split(":") for text in os.environ.get(DELAY, "").split(",") if text)
        return [cls(batcher, part, int(every), float(milliseconds) / 1000)
                for name, part, every, milliseconds in asked if name == batcher]

    def at(self, part: str, tick: int) -> None:
        """Called on the engine's thread; says in the log how long it really took."""
        if part == self.part and tick % self.every == 0:
            began = time.monotonic()
            time.sleep(self.delay_s)
            log.info("delayed %s of tick %d of %s by %.3f ms", part, tick, self.batcher,
                     (time.monotonic() - began) * 1000)


def clock_shift_nanos() -> int:
    """How far this process's clock is to be wrong."""
    return int(float(os.environ.get(CLOCK_SHIFT_MS, 0)) * 1_000_000)
