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
    kind = "invalid_request_error" if error.code.name == "INVALID_ARGUMENT" else "server_error"
    return _error(kind, error.reason.lower(), error.message, error.metadata.get("field"), None)


def body(error: MeshError) -> Message:
    """An error of the mesh as the body of a refused request."""
    return {"error": {**shown(error)["error"], "type": _REFUSALS.get(error.code.name, "server_error")}}


def http_status(error: MeshError) -> int:
    """The status of a refused request. LiveKit gives up after a few of them, but calls for ever after a close."""
    return _STATUSES.get(error.code.name, 503)


def _error(kind: str, code: str, message: str, param: str | None, event_id: str | None) -> Message:
    return {"type": "error",
            "error": {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}}


_STATUSES = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "INVALID_ARGUMENT": 400, "NOT_FOUND": 404}
_REFUSALS = {"UNAUTHENTICATED": "invalid_request_error", "PERMISSION_DENIED": "invalid_request_error",
             "INVALID_ARGUMENT": "invalid_request_error", "NOT_FOUND": "invalid_request_error"}
