"""Who sends a request: where it comes from, and the key, JWT or ticket that it carries."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from services.gateway.trust.addresses import counted_as
from services.mesh.errors import InvalidRequest

TICKET_PROTOCOL = "moshimesh.ticket."
OPENAI_PROTOCOL = "openai-insecure-api-key."
# Names under which people put a secret into a URL, where proxies and logs keep it.
IN_URLS = ("key", "api_key", "apikey", "api-key", "token", "access_token", "ticket", "authorization")


def credential_of(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    """The credential of a request; empty for none. Browsers can't set headers of a WebSocket, but its subprotocols.

    Raises InvalidRequest when there is one in the URL.
    """
    for name in IN_URLS:
        if name in query:
            raise InvalidRequest("SECRET_IN_URL", f"the URL has a parameter {name}, and URLs are logged on their way; "
                                 "use the header Authorization, or a ticket as a subprotocol", field=name)
    if credential := key_or_token(headers):
        return credential
    for offered in headers.get("sec-websocket-protocol", "").split(","):
        for prefix in (TICKET_PROTOCOL, OPENAI_PROTOCOL):
            if offered.strip().startswith(prefix):
                return offered.strip().removeprefix(prefix)
    return ""


def address_of(request: web.BaseRequest) -> str:
    """Where it comes from, as limits count it."""
    return counted_as(request.remote or "")


def key_or_token(headers: Mapping[str, str]) -> str:
    """The credential in headers of HTTP or metadata of gRPC, whose names are in small letters; empty for none."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and bearer.strip():
        return bearer.strip()
    return headers.get("x-api-key", "").strip()
