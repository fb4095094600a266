"""How a call is refused before its upgrade to a WebSocket: an HTTP status, and the error as JSON."""

from __future__ import annotations

import math

from aiohttp import web

from services.mesh.errors import MeshError

_STATUS = {"INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404,
           "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503, "FAILED_PRECONDITION": 503}


def refused(error: MeshError) -> web.Response:
    """The answer to a request that is refused."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.code.name == "UNAUTHENTICATED":
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response({"code": error.code.name, "reason": error.reason, "message": error.message,
                              "metadata": error.metadata},
                             status=_STATUS.get(error.code.name, 500), headers=headers)
