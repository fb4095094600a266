"""`POST /api/tickets`: a backend trades its key for a ticket that a browser may show."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from services.gateway.edges.web.answers import NO_STORE, refusal
from services.gateway.edges.web.credentials import address_of, credential_of
from services.gateway.trust.gate import Gate
from services.mesh.errors import MeshError


def routes(gate: Gate) -> Sequence[web.RouteDef]:
    """The routes."""

    async def issue(request: web.Request) -> web.Response:
        try:
            credential = credential_of(request.headers, request.query)
            caller = await gate.caller(credential, address_of(request), "tickets")
            ticket, expires_at = await gate.issue(caller)
        except MeshError as error:
            return refusal(error)
        return web.json_response({"ticket": ticket, "expires_at": int(expires_at)},
                                 headers=NO_STORE)

    return [web.post("/api/tickets", issue)]
