"""A server as a process has it; how streams open and end is tested with the services that have them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
from moshimesh.tunnel.v1 import tunnel_pb2, tunnel_pb2_grpc

from services.mesh.config import ServiceConfig
from services.mesh.serving import Context, MeshServer, stream


class Nothing:
    """A service without a method."""

    full_name = "moshimesh.test.v1.Nothing"
    stall_s = 1.0

    def register(self, server: grpc.aio.Server) -> None:
        pass

    def drain(self) -> None:
        pass

    async def close(self) -> None:
        pass


async def test_what_is_loaded_is_not_looked_through_again() -> None:
    loaded = [[number] for number in range(1000)]
    server = MeshServer(ServiceConfig(host="127.0.0.1"), "test")
    await server.start(Nothing())
    try:
        looked_through = {id(one) for one in gc.get_objects()}
        assert gc.get_freeze_count() > len(loaded)
        assert not any(id(one) in looked_through for one in loaded)
    finally:
        gc.unfreeze()
        await server.stop(0)


class Leaving(tunnel_pb2_grpc.TunnelServiceServicer):
    """A service whose handler has something to write when its caller has left."""

    full_name = "moshimesh.tunnel.v1.TunnelService"
    stall_s = 10.0

    def __init__(self) -> None:
        self.happened: list[str] = []

    def register(self, server: grpc.aio.Server) -> None:
        tunnel_pb2_grpc.add_TunnelServiceServicer_to_server(self, server)

    def drain(self) -> None:
        pass

    async def close(self) -> None:
        self.happened.append("closed")

    @stream
    async def Tunnel(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        try:
            yield tunnel_pb2.TunnelResponse()
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.3)
            self.happened.append("said")


async def test_a_service_is_closed_after_its_last_handler_has_ended() -> None:
    """Else what a handler says in the end, such as its session's span, comes to a sender that has stopped."""
    server, service = MeshServer(ServiceConfig(host="127.0.0.1"), "test"), Leaving()
    await server.start(service)
    gc.unfreeze()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = tunnel_pb2_grpc.TunnelServiceStub(channel).Tunnel()
        await call.read()
        call.cancel()
        await server.stop(5)
    assert service.happened == ["said", "closed"]
