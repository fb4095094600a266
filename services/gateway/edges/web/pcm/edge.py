"""`/api/pcm`: a conversation over a WebSocket, with audio as bytes and everything else as JSON (docs/websocket.md)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from aiohttp import web

from services.gateway.calls.callers import Audio, Caller, Input
from services.gateway.calls.desk import Desk
from services.gateway.calls.events import Queued, Ready, Speech
from services.gateway.edges.own_rate import hold_at
from services.gateway.edges.web.answers import refusal
from services.gateway.edges.web.credentials import address_of, credential_of
from services.gateway.edges.web.pcm import writing
from services.gateway.edges.web.pcm.reading import End, Open, Ping, read_open, read_query, read_told
from services.gateway.edges.web.pcm.sound import Sound, sound_of
from services.gateway.edges.web.socket import Closed, Socket, Sockets
from services.gateway.trust.gate import Gate
from services.mesh.errors import MeshError
from services.mesh.serving import internal_error

EDGE = "pcm"
SUBPROTOCOL = "moshimesh"
FIRST_MESSAGE_S = 10.0  # from the upgrade to what the caller wants, as for a gRPC caller's config
# How fast audio is read that nobody hears, while the caller waits in line: four times speech in the widest format.
WAITING_BYTES_PER_S, WAITING_MESSAGES_PER_S = 4 * 4 * 48_000, 400


class PcmEdge:
    """`/api/pcm` over one desk."""

    def __init__(self, desk: Desk, gate: Gate, sockets: Sockets, first_message_s: float = FIRST_MESSAGE_S) -> None:
        self._desk, self._gate, self._sockets, self._first_message_s = desk, gate, sockets, first_message_s

    @property
    def routes(self) -> list[web.RouteDef]:
        """For HttpDoor."""
        return [web.get("/api/pcm", self._handle)]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            caller = await self._gate.caller(credential_of(request.headers, request.query), address_of(request), EDGE)
        except MeshError as error:
            return refusal(error)
        async with self._sockets.open(request, (SUBPROTOCOL,)) as socket:
            try:
                await self._call(socket, caller)
            except Closed:
                pass
            except Exception as error:
                failure = error if isinstance(error, MeshError) else internal_error("/api/pcm", error)
                await socket.refuse(failure, writing.refusal(failure))
            return socket.response

    async def _call(self, socket: Socket, caller: Caller) -> None:
        """One call, from its first message to its summary. Raises Closed, MeshError."""
        first = await socket.first(self._first_message_s)
        query = socket.request.query
        asked = read_open(first) if isinstance(first, str) else read_query(query)
        quiet = isinstance(first, bytes) and query.get("events") == "0"
        sound = sound_of(asked.format, asked.rate)
        talk = _Talk(socket, sound, first if isinstance(first, bytes) else None)
        talking = asyncio.create_task(self._talk(talk, caller, asked, quiet))
        try:
            await asyncio.wait((talking, talk.over), return_when=asyncio.FIRST_COMPLETED)
            if talk.over.done():
                raise talk.over.result()
            await talking
        finally:
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)

    async def _talk(self, talk: _Talk, caller: Caller, asked: Open, quiet: bool) -> None:
        """Tell what the desk tells. Raises Closed, MeshError."""
        socket, sound = talk.socket, talk.sound
        async with talk, contextlib.aclosing(
                hold_at(self._desk, caller, asked.opening(), sound.rate_hertz, talk.inputs())) as events:
            async for event in events:
                if isinstance(event, Speech):
                    if not quiet and (asked.frames or event.text):
                        await socket.send(writing.frame(event, with_hops=asked.frames))
                    for data in sound.encode(event.pcm):
                        await socket.send(data)
                    continue
                if isinstance(event, Ready):
                    await talk.listen()
                    event = sound.announced(event)
                elif isinstance(event, Queued):
                    talk.let_go()
                if not quiet:
                    await socket.send(writing.told(event, sound.format))


class _Talk:
    """The caller's side of a call. Use as a context manager."""

    def __init__(self, socket: Socket, sound: Sound, first: bytes | None) -> None:
        """`first` is the message that opened the call, if that was audio already."""
        self.socket, self.sound, self._first = socket, sound, first
        self.over: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        """Why the caller says no more: Closed when it has left, or what it did wrong while nobody listened."""
        self._reading: asyncio.Task[None] | None = None
        self._ended = False

    async def __aenter__(self) -> _Talk:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.listen()

    def let_go(self) -> None:
        """From now on drop what comes, and notice when the caller leaves."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._let_go())

    async def listen(self) -> None:
        """Leave what comes from now on to `inputs`."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None

    async def inputs(self) -> AsyncGenerator[Input, None]:
        """What the caller says, until its `end`. Raises InvalidRequest."""
        if self._first is not None:
            yield Audio(self.sound.decode(self._first))
        try:
            while True:
                message = await self.socket.receive()
                if isinstance(message, bytes):
                    yield Audio(self.sound.decode(message))
                    continue
                told = read_told(message)
                if isinstance(told, End):
                    self._ended = True
                    self.let_go()
                    return
                if isinstance(told, Ping):
                    await self._pong(told)
                else:
                    yield told.control()
        except Closed as closed:
            self._end(closed)
        await asyncio.Event().wait()  # to be cancelled: who hangs up has not said all

    async def _let_go(self) -> None:
        self._first = None  # it is old by now
        try:
            while True:
                message = await self.socket.receive()
                if isinstance(message, bytes):
                    await asyncio.sleep(max(len(message) / WAITING_BYTES_PER_S, 1 / WAITING_MESSAGES_PER_S))
                elif isinstance(told := read_told(message), Ping):
                    await self._pong(told)
                elif isinstance(told, End) and not self._ended:
                    raise Closed  # it has said nothing that anybody heard
        except (Closed, MeshError) as reason:
            self._end(reason)

    async def _pong(self, ping: Ping) -> None:
        with contextlib.suppress(Closed):  # the next read says so
            await self.socket.send(writing.pong(ping.id))

    def _end(self, reason: Exception) -> None:
        if not self.over.done():
            self.over.set_result(reason)
