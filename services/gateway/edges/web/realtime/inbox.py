"""What the desk gets of a client, in order: its sound as it is due, and its controls at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from services.gateway.calls.callers import Audio, Control, Input
from services.gateway.edges.web.realtime.feed import Feed
from services.gateway.edges.web.realtime.settings import Format

MOST_CONTROLS = 16  # that wait for the mesh, which takes them at once; the oldest are outdated by the later ones


class Inbox:
    """An iterator of inputs, for Desk.hold."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._controls: deque[Control] = deque(maxlen=MOST_CONTROLS)
        self._changed = asyncio.Event()
        self._ended = False

    def take(self, data: bytes, format: Format) -> bool:
        """Sound from the client; see Feed."""
        self._changed.set()
        return self._feed.take(data, format)

    def clear(self) -> None:
        """Forget the sound that waits."""
        self._feed.clear()

    def direct(self, control: Control) -> None:
        """Direct the conversation."""
        self._controls.append(control)
        self._changed.set()

    def end(self) -> None:
        """The client says no more."""
        self._ended = True
        self._changed.set()

    async def inputs(self) -> AsyncIterator[Input]:
        """What is due, as it is due, from the moment when the mesh begins to listen until `end`."""
        self._feed.start()
        while not self._ended:
            self._changed.clear()
            while self._controls:
                yield self._controls.popleft()
            due = self._feed.next()
            if not isinstance(due, float):
                yield Audio(due)
            elif due > 0:
                await self._wait(due)

    async def _wait(self, seconds: float) -> None:
        timer = asyncio.get_running_loop().call_later(seconds, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()
