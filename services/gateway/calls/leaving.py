"""A gateway that stops asks its calls to leave, one after another.

While a call moves, its old rows and its new ones are stepped side by side. If all moved at once, engines that are full
would have twice as many rows to step in the same 80 ms, and every call would hear it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Coroutine
from typing import Any, Protocol

# Of the time that the gateway has. Callers that stay where they are hold the others up no longer than that, and the
# last one that is asked has the rest.
SHARE_OF_TIME = 0.5
WRITE_S = 0.2  # what the next gateway does not read, it has to step; but no longer than a few frames take


class Leaves(Protocol):
    """A call, as seen from here."""

    over: asyncio.Event
    """Set when it has left."""

    @property
    def speaks(self) -> bool:
        """Whether it is open: else it waits in line, and there is nothing to be moved."""

    def skip_none(self) -> None:
        """Skip no frame for some seconds."""

    async def written(self) -> None:
        """Wait until another gateway can read what was said so far."""

    def go_away(self, time_left_s: float) -> None:
        """Ask the caller to go on elsewhere."""


async def ask_to_leave(calls: Collection[Leaves], time_left_s: float) -> None:
    """Ask each when the one before it has left, or when half of the time would no longer do for those after it."""
    now = asyncio.get_running_loop().time
    began = now()
    waiting, speaking = [call for call in calls if not call.speaks], [call for call in calls if call.speaks]
    for call in waiting:
        call.go_away(time_left_s)
    for call in speaking:  # a frame that is late until its call has moved is better than none
        call.skip_none()
    left_s = time_left_s
    for number, call in enumerate(speaking, 1):
        if call.over.is_set():
            continue
        turn_ends = began + time_left_s * SHARE_OF_TIME * number / len(speaking)
        await _within(call.written(), min(turn_ends - now(), WRITE_S))
        call.go_away(left_s)
        await _within(call.over.wait(), turn_ends - now())
        left_s = max(began + time_left_s - now(), 0.0)


async def _within(coming: Coroutine[Any, Any, object], seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
        await asyncio.wait_for(coming, max(seconds, 0.0))
