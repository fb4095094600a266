"""`GET /api/entry`: what a page asks before it calls: whether it needs a key, which models and voices there are, and
which models can be told something.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from services.gateway.calls.desk import Desk
from services.gateway.edges.web.answers import NO_STORE, refusal
from services.gateway.edges.web.credentials import address_of, credential_of
from services.gateway.trust.gate import Gate
from services.mesh.errors import MeshError


def routes(desk: Desk, gate: Gate) -> Sequence[web.RouteDef]:
    """The route."""

    async def entry(request: web.Request) -> web.Response:
        models, voices, told = list[str](), list[str](), dict[str, int]()
        try:
            credential = credential_of(request.headers, request.query)
            if credential or not gate.closed:  # who has no key where one is asked for learns only that
                await gate.caller(credential, address_of(request), "entry")
                served = await desk.models()
                models = [model.model_id for model in served]
                told = {model.model_id: model.text_prompt_characters for model in served
                        if model.text_prompt_characters}
                voices = [voice.name for voice in desk.voices]
        except MeshError as error:
            return refusal(error)
        return web.json_response({"keys": gate.closed, "models": models, "voices": voices,
                                  "text_prompt_characters": told}, headers=NO_STORE)

    return [web.get("/api/entry", entry)]
