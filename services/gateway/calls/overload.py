"""What a gateway does without while its callers' frames come late, step by step, before frames must be skipped.

    level 0  nothing
          1  fewer traces: of late frames one in SPARED_ONE_IN is kept
          2  and prefill is slower: rows that begin with a past are opened one after the other, and no call moves only
             for tidiness
          3  and new calls are refused: callers that were cut off may come back, and those in line stay there

The level rises by one for each PERIOD_S in which nearly all frames were late, and falls by one for each in which few
were; between the two it stays, so that it does not go to and fro.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from moshimesh.audio.v1 import audio_pb2

from services.mesh.errors import Overloaded

log = logging.getLogger(__name__)

PERIOD_S = 2.0  # 25 frames of each caller; and the time that a level has to help before the next one
RISES_AT, FALLS_AT = 0.75, 0.25  # share of late frames
FEW_FRAMES = 5  # fewer let no level rise: a call that begins or ends
# Of a caller's frames those count that came in the time of speech. One that sends several at once waits for its own.
PACE = 0.75
SPARED_ONE_IN = 16  # late frames: one explains as much as all of them
# A row with 250 steps of history is built in 30 ms, one with a whole context in 0.3 s: this leaves half of the time.
OPENING_EVERY_S = 0.5
OPENING_WAITS_S = 5.0  # at most: a caller that was cut off gives up soon after
_DOES = ("all is done again", "fewer traces are kept", "rows with a past are opened slowly", "new calls are refused")


class Overload:
    """How late this gateway's callers are served, and what follows from it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.level = 0
        self._now = now
        self._frames = self._late = 0  # of this period
        self._next_opening = 0.0

    def answered(self, *, late: bool) -> None:
        """One more frame that came in the time of speech."""
        self._frames += 1
        self._late += late

    def step(self) -> None:
        """End a period."""
        frames, late = self._frames, self._late
        self._frames = self._late = 0
        share = late / frames if frames else 0.0
        if share >= RISES_AT and frames >= FEW_FRAMES and self.level < 3:
            self.level += 1
            log.warning("overload level %d: %s; %d of %d frames were late", self.level, _DOES[self.level], late,
                        frames)
        elif share <= FALLS_AT and self.level:
            self.level -= 1
            log.info("overload level %d: %s", self.level, _DOES[self.level])

    @property
    def spares_traces(self) -> bool:
        """Whether fewer late frames are kept."""
        return self.level >= 1

    @property
    def spares_prefill(self) -> bool:
        """Whether rows with a past are opened slowly."""
        return self.level >= 2

    @property
    def refuses(self) -> bool:
        """Whether there is no room for a new call, whatever slots are free."""
        return self.level >= 3

    def check(self) -> None:
        """Refuse a new call. Raises Overloaded."""
        if self.refuses:
            raise Overloaded("nearly all frames of this gateway's callers are late, so it takes no new calls now; try "
                             "again later")

    def opening_waits_s(self) -> float:
        """How long a row with a past waits, from now, until it is opened: 0 unless prefill is slow."""
        if not self.spares_prefill:
            return 0.0
        now = self._now()
        at = min(max(now, self._next_opening), now + OPENING_WAITS_S)
        self._next_opening = at + OPENING_EVERY_S
        return at - now


class Punctuality:
    """Tells `Overload` of one live call's answers.

    A caller can't make its frames late: only those count that it sent in the time of speech, and of these only the
    time in the mesh, not how soon the answer is read.
    """

    def __init__(self, overload: Overload, frame_nanos: int) -> None:
        self._overload, self._frame_nanos = overload, frame_nanos
        self._received = 0  # when the last frame came, Unix nanoseconds

    def answered(self, context: audio_pb2.FrameContext) -> None:
        """A frame has left, with an answer."""
        received, returned = context.hops[0].received_unix_nanos, context.hops[-2].returned_unix_nanos
        in_pace = received - self._received >= PACE * self._frame_nanos
        self._received = received
        if in_pace:
            self._overload.answered(late=returned - received > self._frame_nanos)


class Watch:
    """Lets the level follow the frames until it is closed."""

    def __init__(self, overload: Overload, period_s: float = PERIOD_S) -> None:
        self._overload, self._period_s = overload, period_s
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Leave the level as it is."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            self._overload.step()
