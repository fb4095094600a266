"""Listeners: second readers of a live call.

They cost the call nothing but their share of the process: what happens is put into a bounded buffer for each, which
never waits. One that is too slow loses the oldest of what waits for it, and is told how much.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from services.gateway.calls.events import ConversationEvent, Speech
from services.gateway.path.audio import Pcm
from services.gateway.path.ingest import CallerFrame
from services.mesh.errors import CallNotHere, MeshError, TooManyListeners

MOST_LISTENERS = 4  # of one call: each costs the gateway some 0.25 ms of CPU a frame, which is two messages
# Messages that may wait for a listener: 5 s of both sides, which a network that stumbles takes, and 1 MB.
MOST_WAITING = 128


@dataclass(frozen=True)
class Listening:
    """The call is listened to from here on."""

    session_id: str
    model_id: str
    codec_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    delay_frames: int


@dataclass(frozen=True)
class UserFrame:
    """One frame of the user's audio, as the model hears it."""

    sequence: int
    pcm: Pcm
    """Float32 [samples_per_frame]."""


@dataclass(frozen=True)
class Missed:
    """The listener was too slow."""

    messages: int
    """That would have come here."""


@dataclass(frozen=True)
class CallOver:
    """The call has ended, and can't be resumed."""

    reason: str


Overheard: TypeAlias = UserFrame | Speech | ConversationEvent
Listened: TypeAlias = Listening | Overheard | Missed | CallOver


class Listeners:
    """Those of one call."""

    def __init__(self, facts: Listening) -> None:
        self._facts = facts
        self._waiting: set[_Waiting] = set()

    def heard(self, frame: CallerFrame) -> None:
        """A frame goes to the model that it has not heard before."""
        if self._waiting:  # nearly never
            self.tell(UserFrame(frame.sequence, np.frombuffer(frame.pcm, dtype="<f4")))

    def tell(self, item: Overheard) -> None:
        """Tell all that listen now."""
        for waiting in self._waiting:
            waiting.put(item)

    def end(self, reason: str, *, may_go_on: bool) -> None:
        """The call has ended here, and may be resumed."""
        over = CallNotHere(f"the call has ended here ({reason}); when it is resumed, here or at another gateway, "
                           "listen again with the same grant", ended=reason) if may_go_on else CallOver(reason)
        for waiting in self._waiting:
            waiting.put(over)

    async def listen(self) -> AsyncGenerator[Listened, None]:
        """Listening, then what happens from now on. Raises TooManyListeners, CallNotHere."""
        if len(self._waiting) >= MOST_LISTENERS:
            raise TooManyListeners(f"{MOST_LISTENERS} listen to this call already; try again when one has left",
                                   limit=MOST_LISTENERS)
        waiting = _Waiting()
        self._waiting.add(waiting)
        try:
            yield self._facts
            while True:
                item = await waiting.get()
                if isinstance(item, MeshError):
                    raise item
                yield item
                if isinstance(item, CallOver):
                    return
        finally:
            self._waiting.discard(waiting)


class _Waiting:
    """What waits for one listener."""

    def __init__(self) -> None:
        self._items: deque[Overheard | CallOver | MeshError] = deque()
        self._missed = 0
        self._filled = asyncio.Event()

    def put(self, item: Overheard | CallOver | MeshError) -> None:
        """Add what has happened."""
        if len(self._items) == MOST_WAITING:
            self._items.popleft()
            self._missed += 1
        self._items.append(item)
        self._filled.set()

    async def get(self) -> Overheard | Missed | CallOver | MeshError:
        """The next of it."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return Missed(missed)
        return self._items.popleft()
