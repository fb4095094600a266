"""`/v1/live/sessions`: OpenAI's Live protocol. Sound flows both ways all the time, as in the model; there
are no turns and no responses.
"""

from __future__ import annotations

import contextlib
import time

from aiohttp import web

from services.gateway.calls.callers import Caller, Opening
from services.gateway.calls.desk import Desk
from services.gateway.edges.web.answers import refusal
from services.gateway.edges.web.credentials import address_of, credential_of
from services.gateway.edges.web.live.reading import read_start
from services.gateway.edges.web.live.session import Session, refused
from services.gateway.edges.web.realtime.edge import MOST_MESSAGE_BYTES
from services.gateway.edges.web.realtime.faults import ClientFault
from services.gateway.edges.web.realtime.offer import Offer
from services.gateway.edges.web.socket import Closed, Socket, Sockets, close_code, until_one_ends
from services.gateway.trust.gate import Gate
from services.mesh.errors import MeshError
from services.mesh.serving import internal_error

EDGE = "live"
FIRST_MESSAGE_S = 30.0  # to session.start, which an application may put together after it has connected


class LiveEdge:
    """OpenAI's Live protocol over one desk."""

    def __init__(self, desk: Desk, gate: Gate, sockets: Sockets, longest_call_s: float) -> None:
        self._desk, self._gate, self._sockets, self._longest_call_s = desk, gate, sockets, longest_call_s

    @property
    def routes(self) -> list[web.RouteDef]:
        """The second is where clients call whose base URL is a bare host."""
        return [web.get(path, self._handle) for path in ("/v1/live/sessions", "/live/sessions")]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            caller = await self._gate.caller(credential_of(request.headers, request.query), address_of(request), EDGE)
        except MeshError as error:
            return refusal(error)
        async with self._sockets.open(request, (), MOST_MESSAGE_BYTES) as socket:
            with contextlib.suppress(Closed):
                await self._hold(socket, caller)
            return socket.response

    async def _hold(self, socket: Socket, caller: Caller) -> None:
        """A session, from its start to its end. Raises Closed."""
        try:
            session = await self._started(await socket.first(FIRST_MESSAGE_S))
        except (ClientFault, MeshError) as error:
            await socket.send(refused(error))
            await socket.close(close_code(error) if isinstance(error, MeshError) else 1008)
            return
        for problem in await until_one_ends(self._tell(socket, session, caller), _listen(socket, session)):
            failure = problem if isinstance(problem, MeshError) else internal_error("/v1/live/sessions", problem)
            await socket.refuse(failure, session.failed(failure))

    async def _started(self, first: bytes | str) -> Session:
        """The session that the first message asks for. Raises ClientFault, MeshError."""
        start = read_start(first)
        # As OpenAI's clients say the name of one of OpenAI's models, any other name gets the model with the most room.
        served = {model.model_id: model for model in await self._desk.models()}
        model = served.get(start.session.model) or await self._desk.info()
        return Session(start, model, Offer.of(self._desk, model), round(time.time() + self._longest_call_s))

    async def _tell(self, socket: Socket, session: Session, caller: Caller) -> None:
        opening = Opening(session.new, traceparent=socket.request.headers.get("traceparent", ""))
        async with contextlib.aclosing(self._desk.hold(caller, opening, session.inputs())) as told:
            async for event in told:
                for message in session.told(event):
                    await socket.send(message)
        await socket.close()


async def _listen(socket: Socket, session: Session) -> None:
    while True:
        for message in session.asked(await socket.receive()):
            await socket.send(message)
