"""`GET /api/entry`: what a page asks before it calls: whether it needs a key, and which models and voices there
are.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from services.gateway.calls.desk import Desk
from services.gateway.edges.web.answers import NO_STORE, refusal
from services.gateway.edges.web.credentials import credential_of
from services.gateway.trust.gate import Gate
from services.mesh.errors import MeshError


def routes(desk: Desk, gate: Gate) -> Sequence[web.RouteDef]:
    """The route."""

    async def entry(request: web.Request) -> web.Response:
        models, voices = list[str](), list[str]()
        try:
            credential = credential_of(request.headers, request.query)
            if credential or not gate.closed:  # who has no key where one is asked for learns only that
                await gate.caller(credential, request.remote or "", "entry")
                models = [model.model_id for model in await desk.models()]
                voices = [voice.name for voice in desk.voices]
        except MeshError as error:
            return refusal(error)
        return web.json_response({"keys": gate.closed, "models": models, "voices": voices},
                                 headers=NO_STORE)

    return [web.get("/api/entry", entry)]
