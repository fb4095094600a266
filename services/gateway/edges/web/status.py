"""`GET /api/status`: how this gateway is, for its operator; shown by the page at `/status` and by `moshimesh top`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from services.gateway.edges.web.answers import NO_STORE, refusal
from services.gateway.edges.web.credentials import address_of, credential_of
from services.gateway.trust.gate import Gate
from services.mesh.errors import MeshError, PermissionDenied


def routes(status: Callable[[], Awaitable[Mapping[str, Any]]], gate: Gate) -> Sequence[web.RouteDef]:
    """The route. `status` says how it is now."""

    async def answer(request: web.Request) -> web.Response:
        try:
            caller = await gate.caller(credential_of(request.headers, request.query), address_of(request), "status")
            if caller.from_ticket:  # a ticket is for a browser's call, not for who runs the mesh
                raise PermissionDenied("KEY_NEEDED", "the status is shown for a key, not for a ticket")
        except MeshError as error:
            return refusal(error)
        return web.json_response(await status(), headers=NO_STORE)

    return [web.get("/api/status", answer)]
