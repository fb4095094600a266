"""Calls leave half-empty replicas, one after another, so that a GPU can go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Collection

from services.gateway.calls.conversation import Conversation
from services.gateway.peers.fleet import Fleet
from services.gateway.peers.packing import replicas_to_empty

log = logging.getLogger(__name__)

# One call of this gateway in so long: rebuilding a row takes tens of ms of a replica that others speak with, and what
# was moved shows in the next poll before the next one moves.
EVERY_S = 2.0
REST_S = 60.0  # a call that has moved is left alone for this long


class Defragmentation:
    """Moves this gateway's calls off the replica that is being emptied."""

    def __init__(self, fleet: Fleet, conversations: Callable[[], Collection[Conversation]],
                 now: Callable[[], float] = time.monotonic, every_s: float = EVERY_S) -> None:
        self._pools, self._conversations = (fleet.codec, fleet.lm), conversations
        self._now, self._every_s = now, every_s
        self._moved: weakref.WeakKeyDictionary[Conversation, float] = weakref.WeakKeyDictionary()
        self._task = asyncio.create_task(self._forever())

    async def close(self) -> None:
        """Let calls stay where they are."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def step(self) -> None:
        """Say which replicas are being emptied, and move one call off them."""
        for pool in self._pools:
            pool.emptying = replicas_to_empty(pool)
        now = self._now()
        rested = [one for one in self._conversations() if now - self._moved.get(one, -REST_S) >= REST_S]
        for replica in (replica for pool in self._pools for replica in pool.emptying):
            for conversation in rested:
                if conversation.leave(replica):
                    self._moved[conversation] = now
                    return

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                self.step()
            except Exception:
                log.exception("calls could not be moved together")
