"""What is wrong with a client's message, and how the mesh's own errors look to a client."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from services.gateway.edges.web.answers import answer
from services.mesh.errors import LineFull, MeshError, NoFreeSlot

Message = dict[str, Any]


class ClientFault(Exception):
    """A message that can't be understood. Pipecat stops listening at an error, so nothing less is one."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def shown(self, event_id: str | None) -> Message:
        """The error event. `event_id` is the client's own."""
        return _error("invalid_request_error", self.code, self.message, self.param, event_id)


def shown(error: MeshError) -> Message:
    """An error of the mesh as the event that comes before the close."""
    kind = "invalid_request_error" if error.code.name in _STATUSES else "server_error"
    code = _OPENAI_S_WORDS.get(error.code.name) or _OPENAI_S_WORDS.get(error.reason) or error.reason.lower()
    return _error(kind, code, error.message, error.metadata.get("field"), None)


def refused(error: MeshError) -> web.Response:
    """An error of the mesh as the answer to a request. LiveKit gives up after four refused upgrades, but calls for ever
    after a close.
    """
    status = 503 if isinstance(error, NoFreeSlot | LineFull) else _STATUSES.get(error.code.name, 503)
    return answer(error, shown(error)["error"], status)


def _error(kind: str, code: str, message: str, param: str | None, event_id: str | None) -> Message:
    return {"type": "error",
            "error": {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}}


_STATUSES = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "INVALID_ARGUMENT": 400, "NOT_FOUND": 404,
             "RESOURCE_EXHAUSTED": 429}
# OpenAI's own words for what trying again does not help: LiveKit stops at these.
_OPENAI_S_WORDS = {"UNAUTHENTICATED": "invalid_api_key", "AUDIO_QUOTA_USED": "insufficient_quota"}
