"""An HTTP port with some of the gateway's routes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable

import aiohttp
from aiohttp import web

from services.gateway.edges.web.connection import Connections
from services.gateway.edges.web.door import HttpDoor
from services.gateway.edges.web.socket import Sockets


class WebDoor:
    """The HTTP port of a desk, with the routes that a door has there. `async with` opens it."""

    def __init__(self, routes: Callable[[Sockets], Iterable[web.RouteDef]], *, connections: Connections | None = None,
                 **bounds: float) -> None:
        """`bounds` are those of Sockets."""
        self.sockets = Sockets(**{"stall_s": 5.0, **bounds})  # type: ignore[arg-type]
        self._door = HttpDoor("127.0.0.1", 0, routes(self.sockets), self.sockets, ready=lambda: True,
                              connections=connections)

    async def __aenter__(self) -> WebDoor:
        await self._door.open()
        self.url = f"http://127.0.0.1:{self._door.port}"
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._door.close()

    @contextlib.asynccontextmanager
    async def connect(self, path: str, **options: object) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket to this path."""
        async with self._session.ws_connect(f"{self.url}{path}", **options) as socket:  # type: ignore[arg-type]
            yield socket
