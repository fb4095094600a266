"""The gateway's HTTP port: WebSockets for conversations, health, and the page.

Each protocol has a file of its own beside this one, and gives its routes.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import http_exceptions, web

from services.gateway.edges.web.connection import Connection, Connections
from services.gateway.edges.web.socket import Sockets
from services.mesh.logs import Sparing

log = logging.getLogger("gateway")

MOST_BODY_BYTES = 1 << 16  # of a plain request: the largest is a session's settings
MOST_HEADER_BYTES = 8190  # of one header, and of the request line; a JWT takes 1 to 2 kB
TLS_HANDSHAKE_S = 10.0


class _NoRequest(logging.Filter):
    """aiohttp logs bytes that are no HTTP as errors, with them and a traceback. Any stranger can send some, and a
    secret may be in them: this leaves a line now and then, without them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines = Sparing(log)

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, http_exceptions.HttpProcessingError):
            return True
        self._lines.warning("what came on the HTTP port was no request (%s)", type(error).__name__)
        return False


_http_log = logging.getLogger("gateway.http")
_http_log.addFilter(_NoRequest())


class HttpDoor:
    """Listens on one port; see services.mesh.process.Door."""

    def __init__(self, host: str, port: int, routes: Iterable[web.RouteDef], sockets: Sockets, *,
                 ready: Callable[[], bool], tls: ssl.SSLContext | None = None, connections: Connections | None = None
                 ) -> None:
        """`ready` says whether a new call could be served now, `connections` what bounds a connection has."""
        self.host, self.port = host, port
        self.scheme = "https" if tls else "http"
        self._sockets, self._ready, self._tls = sockets, ready, tls
        app = web.Application(client_max_size=MOST_BODY_BYTES)
        app.add_routes([web.get("/healthz", self._health), web.get("/readyz", self._readiness), *routes])
        app.router.resolve = _readable(app.router.resolve)  # type: ignore[assignment,method-assign]
        app.on_response_prepare.append(_answered)  # type: ignore[arg-type,unused-ignore]  # the hint of some aiohttps
        self._connections = connections or Connections()
        # A handler is cancelled when its peer hangs up, so that the slot is back at once.
        self._runner = web.AppRunner(app, access_log=None, logger=_http_log, handler_cancellation=True,
                                     max_line_size=MOST_HEADER_BYTES, max_field_size=MOST_HEADER_BYTES)

    async def open(self) -> None:
        """Listen, and take calls until `close`."""
        await self._runner.setup()
        handlers = self._runner.server
        assert handlers is not None
        try:  # not a site of aiohttp, which gives a TLS handshake a minute
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Connection(handlers(), self._connections), self.host, self.port, ssl=self._tls,
                reuse_address=True, ssl_handshake_timeout=TLS_HANDSHAKE_S if self._tls else None)
        except OSError as error:
            raise SystemExit(f"gateway: can't listen on {self.host}:{self.port} ({error.strerror}); choose another "
                             "port with --http-port") from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening, and return when the last call has ended; when cancelled, end the calls that are left."""
        self._server.close()
        try:
            await self._sockets.all_closed()
        finally:
            await asyncio.shield(self._runner.cleanup())

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, request: web.Request) -> web.Response:
        ready = self._ready()
        return web.Response(text="ready\n" if ready else "not ready\n", status=200 if ready else 503)


def _readable(resolve: Callable[[web.Request], Awaitable[web.UrlMappingMatchInfo]]
              ) -> Callable[[web.Request], Awaitable[web.UrlMappingMatchInfo]]:
    """Find a request's route, unless its headers are not UTF-8: aiohttp repeats some of them in its own refusals, fails
    to write those, and calls that our error. No middleware is asked before it answers `Expect`.
    """
    async def checked(request: web.Request) -> web.UrlMappingMatchInfo:
        try:
            "".join(request.headers.values()).encode()
        except UnicodeEncodeError:
            raise web.HTTPBadRequest(text="the headers are not UTF-8\n") from None
        return await resolve(request)

    return checked


async def _answered(request: web.Request, response: web.StreamResponse) -> None:
    if connection := Connection.of(request):
        connection.answered()
