"""A server as a process has it; how streams open and end is tested with the services that have them."""

from __future__ import annotations

import gc

import grpc

from services.mesh.config import ServiceConfig
from services.mesh.serving import MeshServer


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
