"""A refusal as an answer of HTTP."""

from __future__ import annotations

import math

from aiohttp import web

from services.mesh.errors import MeshError

_STATUSES = {"INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404,
             "DEADLINE_EXCEEDED": 408, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429, "FAILED_PRECONDITION": 503,
             "UNAVAILABLE": 503}


def refusal(error: MeshError) -> web.Response:
    """The error, with its reason for machines and its message for people."""
    headers = {"Cache-Control": "no-store"}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.code.name == "UNAUTHENTICATED":
        headers["WWW-Authenticate"] = "Bearer"
    body: dict[str, object] = {"code": error.code.name, "reason": error.reason, "message": error.message,
                               "metadata": error.metadata}
    if error.retry_after_s is not None:
        body["retry_after_ms"] = round(error.retry_after_s * 1000)
    return web.json_response({"error": body}, status=_STATUSES.get(error.code.name, 500), headers=headers)
