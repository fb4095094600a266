"""`/v1/realtime`: OpenAI's Realtime protocol, in both of its dialects, for everything that already speaks it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator

from aiohttp import web

from services.gateway.calls.callers import New, Opening
from services.gateway.calls.desk import Desk, ModelInfo
from services.gateway.calls.events import Event
from services.gateway.edges.web.credentials import address_of, credential_of
from services.gateway.edges.web.realtime import faults
from services.gateway.edges.web.realtime.beginning import Beginning
from services.gateway.edges.web.realtime.client_secrets import ClientSecrets
from services.gateway.edges.web.realtime.connection import Connection
from services.gateway.edges.web.realtime.dialects import BETA_HEADER, BETA_SUBPROTOCOL, Beta, Dialect, Ga
from services.gateway.edges.web.realtime.feed import Feed
from services.gateway.edges.web.realtime.ids import Ids
from services.gateway.edges.web.realtime.inbox import Inbox
from services.gateway.edges.web.realtime.items import Items
from services.gateway.edges.web.realtime.offer import Offer
from services.gateway.edges.web.realtime.session import Session
from services.gateway.edges.web.realtime.settings import Settings
from services.gateway.edges.web.realtime.sound import Mouth, ear_of
from services.gateway.edges.web.realtime.turns import Turns
from services.gateway.edges.web.socket import Sockets
from services.gateway.trust.gate import Gate
from services.mesh.errors import InvalidRequest, MeshError

EDGE = "realtime"
SUBPROTOCOL = "realtime"
MOST_MESSAGE_BYTES = 6 << 20  # base64 of what Feed lets wait, and the JSON around it


class RealtimeEdge:
    """OpenAI's Realtime protocol over one desk."""

    def __init__(self, desk: Desk, gate: Gate, sockets: Sockets, longest_call_s: float) -> None:
        self._desk, self._gate, self._sockets, self._longest_call_s = desk, gate, sockets, longest_call_s

    @property
    def routes(self) -> list[web.RouteDef]:
        """`/realtime` is where LiveKit's plugin calls when its base URL is a bare host."""
        secrets = ClientSecrets(self._desk, self._gate, EDGE, self._longest_call_s)
        return [*(web.get(path, self._realtime) for path in ("/v1/realtime", "/realtime")), *secrets.routes]

    async def _realtime(self, request: web.Request) -> web.StreamResponse:
        offered = [one.strip() for one in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if one.strip()]
        try:
            _check(request, offered)
            return await self._call(request, offered)
        except MeshError as error:  # before the upgrade
            if SUBPROTOCOL in offered:  # a browser; see _check
                return await self._refuse_browser(request, error)
            return faults.refused(error)

    async def _call(self, request: web.Request, offered: list[str]) -> web.StreamResponse:
        """Hold a call. Raises MeshError when it can't be opened."""
        credential = credential_of(request.headers, request.query)
        caller = await self._gate.caller(credential, address_of(request), EDGE)
        asked = json.loads(caller.ticket_note or "{}")  # by who gave the client its secret
        model = await self._model(request.query.get("model", ""), asked.get("model", ""))
        ids = Ids()
        beta = request.headers.get(BETA_HEADER[0], "") == BETA_HEADER[1] or BETA_SUBPROTOCOL in offered
        dialect: Dialect = Beta() if beta else Ga()
        settings = Settings(ids.new("sess"), model.model_id, round(time.time() + self._longest_call_s),
                            Offer.of(self._desk, model))
        settings.update(asked)
        beginning = Beginning(settings)
        session, inbox = self._session(ids, settings, beginning, model, dialect)
        opening = Opening(New(model_id=model.model_id), traceparent=request.headers.get("traceparent", ""),
                          begins=None if settings.offer.empty else beginning.settled)
        async with contextlib.aclosing(self._desk.hold(caller, opening, inbox.inputs())) as told:
            first = await anext(told)  # from here on there is a slot for the call, or it has a place in the line
            async with self._sockets.open(request, (SUBPROTOCOL,), MOST_MESSAGE_BYTES) as socket:
                await Connection(socket, session, dialect, ids).hold(_with(first, told))
                return socket.response

    async def _model(self, *names: str) -> ModelInfo:
        """The first model of these names, or the one with the most room if there is none: clients say gpt-realtime."""
        served = {model.model_id: model for model in await self._desk.models()}
        return next((served[name] for name in names if name in served), None) or await self._desk.info()

    def _session(self, ids: Ids, settings: Settings, beginning: Beginning, model: ModelInfo, dialect: Dialect
                 ) -> tuple[Session, Inbox]:
        frame_s = model.samples_per_frame / model.sample_rate_hertz
        items = Items()
        inbox = Inbox(Feed(ear_of(model.sample_rate_hertz), model.samples_per_frame, frame_s))
        mouth = Mouth(model.sample_rate_hertz, lambda: settings.output)
        turns = Turns(ids, items, mouth, lambda: settings.of_responses, round(1000 * frame_s))
        return Session(ids, settings, beginning, items, turns, inbox, dialect, round(1000 * frame_s)), inbox

    async def _refuse_browser(self, request: web.Request, error: MeshError) -> web.StreamResponse:
        """A page does not see the status of a refused upgrade, so it is told on the socket."""
        async with self._sockets.open(request, (SUBPROTOCOL,)) as socket:
            await socket.refuse(error, json.dumps({"event_id": Ids().new("event"), **faults.shown(error)}))
            return socket.response


def _check(request: web.Request, offered: list[str]) -> None:
    """Refuse what is not served here. Raises InvalidRequest."""
    if "call_id" in request.query:
        raise InvalidRequest("BAD_CALL_ID", "there are no calls to join here", field="call_id")
    if request.query.get("intent", "") == "transcription":
        raise InvalidRequest("BAD_INTENT", "only conversations are served here", field="intent")
    if offered and SUBPROTOCOL not in offered:  # none of the others may be answered: they may be a key
        raise InvalidRequest("BAD_SUBPROTOCOL", f"the subprotocol is {SUBPROTOCOL!r}", field="Sec-WebSocket-Protocol")


async def _with(first: Event, rest: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
    yield first
    async for event in rest:
        yield event
