"""A desk whose side of each call a test plays, behind the real edge on a real port."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from services.gateway.calls.callers import Audio, Caller, Input, Opening
from services.gateway.calls.desk import ModelInfo
from services.gateway.calls.events import ConversationEvent, Event, EventKind
from services.gateway.edges.web.door import HttpDoor
from services.gateway.edges.web.realtime.edge import RealtimeEdge
from services.gateway.edges.web.socket import Sockets
from services.mesh.errors import PermissionDenied, Unauthenticated
from tests.gateway.edges.web.realtime.told import FRAME, FRAME_MS, RATE, READY, frame

KEY = "sk-very-secret-key"
MODEL = ModelInfo("moshi", "mimi", RATE, FRAME, 8, 8)


class Call:
    """The mesh's side of one call."""

    def __init__(self, caller: Caller, opening: Opening) -> None:
        self.caller, self.opening = caller, opening
        self.samples = 0  # heard
        self.controls: list[Any] = []
        self.over = False
        self.sequence = 0
        self._events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    def tell(self, event: Event | Exception | None) -> None:
        """Something happens; None ends the call well."""
        self._events.put_nowait(event)

    def event(self, kind: EventKind) -> None:
        """Something happens at the next frame."""
        self.tell(ConversationEvent(kind, self.sequence + 1, (self.sequence + 1) * FRAME_MS))

    def frames(self, count: int, text: str = "") -> None:
        """So many frames of the model, with this text each."""
        for _ in range(count):
            self.sequence += 1
            self.tell(frame(self.sequence, text))

    async def hold(self, inputs: AsyncIterator[Input]) -> AsyncGenerator[Event, None]:
        """See Desk."""
        hearing = asyncio.ensure_future(self._hear(inputs))
        try:
            while (event := await self._events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
            self.over = True

    async def _hear(self, inputs: AsyncIterator[Input]) -> None:
        async for given in inputs:
            if isinstance(given, Audio):
                self.samples += len(given.pcm)
            else:
                self.controls.append(given)


class ScriptedDesk:
    """Opens every call at once, unless told otherwise."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.first: list[Event | Exception] = [READY]
        """What each call begins with."""
        self.voices: list[Any] = []

    async def models(self) -> list[ModelInfo]:
        """See Desk."""
        return [MODEL]

    async def info(self) -> ModelInfo:
        """See Desk."""
        return MODEL

    async def hold(self, caller: Caller, opening: Opening, inputs: AsyncIterator[Input]
                   ) -> AsyncGenerator[Event, None]:
        """See Desk."""
        call = Call(caller, opening)
        self.calls.append(call)
        for event in self.first:
            call.tell(event)
        async with contextlib.aclosing(call.hold(inputs)) as events:
            async for event in events:
                yield event


class KeyGate:
    """Lets one key in, or every one; its tickets are for the same."""

    def __init__(self, key: str = "") -> None:
        self._key, self.closed = key, bool(key)
        self.tickets: dict[str, tuple[float, bool]] = {}
        """How long each lives, and whether it opens one call only."""
        self.notes: dict[str, str] = {}

    async def caller(self, credential: str, address: str, edge: str) -> Caller:
        """See Gate."""
        if credential == "forbidden":
            raise PermissionDenied("DOOR_CLOSED", "not through this door")
        if self.closed and credential not in (self._key, *self.tickets):
            raise Unauthenticated("BAD_KEY", "no such key")
        return replace(Caller.with_key(credential, address, edge), ticket_note=self.notes.get(credential, ""))

    async def issue(self, caller: Caller, lives_s: float = 60.0, *, single_use: bool = True, note: str = ""
                    ) -> tuple[str, float]:
        """See Gate."""
        ticket = f"ek_{len(self.tickets)}"
        self.tickets[ticket] = (lives_s, single_use)
        self.notes[ticket] = note
        return ticket, time.time() + lives_s


@contextlib.asynccontextmanager
async def listening(make: Callable[[Sockets], RealtimeEdge], stall_s: float = 5.0) -> AsyncIterator[str]:
    """An edge on a port: the URL of the port. Calls that are open at the end are cut off."""
    sockets = Sockets(stall_s)
    door = HttpDoor("127.0.0.1", 0, make(sockets).routes, sockets, ready=lambda: True)
    await door.open()
    try:
        yield f"http://127.0.0.1:{door.port}"
    finally:
        closing = asyncio.ensure_future(door.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)


class Stage:
    """The edge on a port, over a scripted desk."""

    def __init__(self, gate: KeyGate | None = None, stall_s: float = 5.0) -> None:
        self.desk: Any = ScriptedDesk()
        self.gate = gate or KeyGate()
        self._listening = listening(lambda sockets: RealtimeEdge(self.desk, self.gate, sockets, 3600.0), stall_s)

    async def __aenter__(self) -> Stage:
        self.http = await self._listening.__aenter__()
        self.url = f"{self.http.replace('http', 'ws')}/v1/realtime?model=gpt-realtime"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._listening.__aexit__(None, None, None)

    @property
    def call(self) -> Call:
        """The last call."""
        return self.desk.calls[-1]
