"""A refusal as an answer of HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from services.mesh.errors import MeshError

NO_STORE = {"Cache-Control": "no-store"}
_STATUSES = {"INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404,
             "DEADLINE_EXCEEDED": 408, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429, "FAILED_PRECONDITION": 503,
             "UNAVAILABLE": 503}


def refusal(error: MeshError) -> web.Response:
    """The error, with its reason for machines and its message for people."""
    return answer(error, described(error), _STATUSES.get(error.code.name, 500))


def answer(error: MeshError, body: Mapping[str, Any], status: int) -> web.Response:
    """A refusal in a protocol's own words."""
    headers = dict(NO_STORE)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.code.name == "UNAUTHENTICATED":
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response({"error": body}, status=status, headers=headers)


def described(error: MeshError) -> dict[str, Any]:
    """The error, for JSON."""
    body: dict[str, Any] = {"code": error.code.name, "reason": error.reason, "message": error.message,
                            "metadata": error.metadata}
    if error.retry_after_s is not None:
        body["retry_after_ms"] = round(error.retry_after_s * 1000)
    return body
