"""A service of ours in this process, on a real port, with what callers have of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from typing_extensions import Self

from services.gateway.peers.tunnel import Tunnel
from services.mesh.process import Servable
from services.mesh.serving import RunningStreams, register


class Served:
    """`async with` serves it; `stub` and `tunnel` lead there, as does `address`."""

    def __init__(self, role: str, service: Servable, stub: Callable[[grpc.aio.Channel], Any]) -> None:
        self.role, self.service, self._make_stub = role, service, stub

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        for service in self.service.services:
            register(self._server, service, RunningStreams())
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self.address = f"127.0.0.1:{port}"
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = self._make_stub(self.channel)
        self.tunnel = Tunnel(self.role, self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self._server.stop(0)
        await self.service.close()
