"""`/api/chat`: what Moshi's own clients speak, and those made for its servers (docs/doors.md)."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web

from services.gateway.calls.callers import Caller, New, Opening, Resumed
from services.gateway.calls.desk import Desk
from services.gateway.calls.events import GoAway, Queued, Ready, ResumeStatus, Speech
from services.gateway.edges.ogg import OggOpusWriter
from services.gateway.edges.own_rate import hold_at
from services.gateway.edges.web.answers import refusal
from services.gateway.edges.web.chat import messages
from services.gateway.edges.web.chat.hearing import Hearing
from services.gateway.edges.web.chat.query import Asked, read_query, read_resumed
from services.gateway.edges.web.credentials import address_of, credential_of
from services.gateway.edges.web.socket import Closed, Socket, Sockets
from services.gateway.trust.gate import Gate
from services.mesh.errors import InvalidRequest, MeshError
from services.mesh.serving import internal_error

EDGE = "chat"
RATE_HERTZ = 24_000
PYTHON_PACKET_MS, RUST_PACKET_MS = 80, 40  # as their servers; any client takes both
FIRST_MESSAGE_S = 10.0  # for a caller that resumes to say what


class ChatEdge:
    """`/api/chat` over one desk."""

    def __init__(self, desk: Desk, gate: Gate, sockets: Sockets) -> None:
        self._desk, self._gate, self._sockets = desk, gate, sockets

    @property
    def routes(self) -> list[web.RouteDef]:
        """For HttpDoor."""
        return [web.get("/api/chat", self._handle)]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            credential = credential_of(request.headers, request.query)
            caller = await self._gate.caller(credential, address_of(request), EDGE)
        except MeshError as error:
            return refusal(error)
        async with self._sockets.open(request) as socket:
            try:
                await self._call(socket, caller)
            except Closed:
                pass
            except Exception as error:
                failure = error if isinstance(error, MeshError) else internal_error("/api/chat", error)
                await socket.refuse(failure, messages.error(failure.reason, failure.message))
            return socket.response

    async def _call(self, socket: Socket, caller: Caller) -> None:
        """One call, until either side ends it. Raises Closed, MeshError."""
        asked = read_query(socket.request.query)
        origin = await _resumed(socket) if asked.resumes else asked.new
        hearing = Hearing(socket, RATE_HERTZ)
        listening = asyncio.create_task(hearing.listen())
        talking = asyncio.create_task(self._talk(socket, hearing, caller, origin, asked))
        try:
            await asyncio.wait((listening, talking), return_when=asyncio.FIRST_COMPLETED)
            await (talking if talking.done() else listening)
        finally:
            for task in (listening, talking):
                task.cancel()
            await asyncio.gather(listening, talking, return_exceptions=True)

    async def _talk(self, socket: Socket, hearing: Hearing, caller: Caller, origin: New | Resumed, asked: Asked
                    ) -> None:
        """Tell what the desk tells. Raises Closed, MeshError."""
        writer = OggOpusWriter(RATE_HERTZ, RUST_PACKET_MS if asked.rust else PYTHON_PACKET_MS)
        answers = 0
        async with contextlib.aclosing(
                hold_at(self._desk, caller, Opening(origin), RATE_HERTZ, hearing.inputs())) as events:
            async for event in events:
                if isinstance(event, Speech):
                    for page in writer.write(event.pcm):
                        await socket.send(messages.AUDIO + page)
                    if event.text:
                        await socket.send(messages.text(event.text))
                    answers += 1
                    if answers == asked.max_steps:
                        return
                elif isinstance(event, Ready):
                    hearing.open()
                    if asked.rust or asked.can_resume:
                        await socket.send(messages.metadata(event, resumable=asked.can_resume))
                    await socket.send(messages.RUST_HANDSHAKE if asked.rust else messages.HANDSHAKE)
                elif isinstance(event, Queued):
                    hearing.in_line()
                elif isinstance(event, GoAway | ResumeStatus) and asked.can_resume:
                    await socket.send(messages.notice(event))


async def _resumed(socket: Socket) -> Resumed:
    """What the first message says about the conversation to go on with. Raises Closed, InvalidRequest, SlowCaller."""
    first = await socket.first(FIRST_MESSAGE_S)
    if isinstance(first, str) or not first.startswith(messages.METADATA):
        raise InvalidRequest("BAD_METADATA", "with resume=again the first message must be metadata (kind 4)",
                             field="resume_handle")
    return read_resumed(first[1:])
