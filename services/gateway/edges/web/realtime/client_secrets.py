"""`POST /v1/realtime/client_secrets`, and `/sessions` of the beta protocol: a backend trades its key for a ticket with
which a browser calls, and says how its calls begin. OpenAI's clients take a ticket only if it begins like theirs, as
all of ours do.
"""

from __future__ import annotations

import json
import time
from typing import Any

from aiohttp import web

from services.gateway.calls.desk import Desk
from services.gateway.edges.web.answers import NO_STORE
from services.gateway.edges.web.credentials import address_of, credential_of
from services.gateway.edges.web.realtime import faults
from services.gateway.edges.web.realtime.dialects import Beta, Dialect, Ga
from services.gateway.edges.web.realtime.ids import Ids
from services.gateway.edges.web.realtime.offer import Offer
from services.gateway.edges.web.realtime.reading import read_session
from services.gateway.edges.web.realtime.settings import Settings
from services.gateway.trust.gate import Gate
from services.mesh.errors import InvalidRequest, MeshError

LEAST_S, MOST_S = 10, 7200  # OpenAI's bounds
GA_LIVES_S, BETA_LIVES_S = 600, 60  # and its defaults


class ClientSecrets:
    """Both dialects' answers. A secret opens any number of calls until it expires, with the settings that it was made
    with, as far as the call says nothing else.
    """

    def __init__(self, desk: Desk, gate: Gate, edge: str, longest_call_s: float) -> None:
        self._desk, self._gate, self._edge, self._longest_call_s = desk, gate, edge, longest_call_s

    @property
    def routes(self) -> list[web.RouteDef]:
        """Where they are asked for."""
        return [web.post("/v1/realtime/client_secrets", self._ga), web.post("/v1/realtime/sessions", self._beta)]

    async def _ga(self, request: web.Request) -> web.Response:
        try:
            value, expires_at, session = await self._issue(request, Ga(), "session", GA_LIVES_S)
        except MeshError as error:
            return faults.refused(error)
        return _secret({"value": value, "expires_at": expires_at, "session": session})

    async def _beta(self, request: web.Request) -> web.Response:
        try:
            value, expires_at, session = await self._issue(request, Beta(), None, BETA_LIVES_S)
        except MeshError as error:
            return faults.refused(error)
        return _secret({**session, "client_secret": {"value": value, "expires_at": expires_at}})

    async def _issue(self, request: web.Request, dialect: Dialect, member: str | None, lives_s: float
                     ) -> tuple[str, int, dict[str, Any]]:
        """The ticket, when it expires, and a session as it would begin now. The session that is asked for is this
        member of the body, or the body. Raises MeshError.
        """
        credential = credential_of(request.headers, request.query)
        caller = await self._gate.caller(credential, address_of(request), self._edge)
        body = await _body(request)
        asked = read_session(body.get(member) or {} if member else body, [voice.name for voice in self._desk.voices])
        served = {model.model_id: model for model in await self._desk.models()}
        model = served.get(asked.get("model", "")) or await self._desk.info()
        ticket, expires_at = await self._gate.issue(caller, _seconds(body, lives_s), single_use=False,
                                                    note=json.dumps(asked) if asked else "")
        settings = Settings(Ids().new("sess"), model.model_id, round(time.time() + self._longest_call_s),
                            Offer.of(self._desk, model))
        settings.update(asked)
        return ticket, int(expires_at), dialect.session(settings)


def _secret(answer: dict[str, Any]) -> web.Response:
    return web.json_response(answer, headers=NO_STORE)


async def _body(request: web.Request) -> dict[str, Any]:
    """What is asked for; an empty body asks for nothing. Raises InvalidRequest."""
    try:
        body = json.loads(await request.read() or b"{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise InvalidRequest("BAD_BODY", "the body must be a JSON object", field="body")
    session = body.get("session")
    if isinstance(session, dict) and session.get("type", "realtime") != "realtime":
        raise InvalidRequest("BAD_SESSION", "only sessions of type 'realtime' are served here", field="session.type")
    return body


def _seconds(body: dict[str, Any], default_s: float) -> float:
    """How long the ticket is to live, clamped."""
    after = body.get("expires_after")
    seconds = after.get("seconds") if isinstance(after, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds != seconds:
        return default_s
    return float(min(max(seconds, LEAST_S), MOST_S))
