"""What is wrong with a client's message, and how the mesh's own errors look to a client."""

from __future__ import annotations

from typing import Any

from services.mesh.errors import MeshError

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
    # OpenAI's own word for whatever is wrong with a credential: LiveKit does not call again when it reads it.
    code = "invalid_api_key" if error.code.name == "UNAUTHENTICATED" else error.reason.lower()
    return _error(kind, code, error.message, error.metadata.get("field"), None)


def body(error: MeshError) -> Message:
    """An error of the mesh as the body of a refused request."""
    return {"error": shown(error)["error"]}


def http_status(error: MeshError) -> int:
    """The status of a refused request. LiveKit gives up after a few of them, but calls for ever after a close."""
    return _STATUSES.get(error.code.name, 503)


def _error(kind: str, code: str, message: str, param: str | None, event_id: str | None) -> Message:
    return {"type": "error",
            "error": {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}}


_STATUSES = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "INVALID_ARGUMENT": 400, "NOT_FOUND": 404}
