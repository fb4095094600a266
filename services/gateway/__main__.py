"""`python -m services.gateway`: find the services behind it, then open the door."""

from __future__ import annotations

import asyncio
import logging
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from moshimesh.codec.v1 import codec_pb2, codec_pb2_grpc
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc

from services.gateway.config import GatewayConfig
from services.gateway.server import GatewayServer
from services.gateway.sessions import SessionStore
from services.mesh.config import read_config
from services.mesh.errors import ModelMismatch, PeerLost
from services.mesh.serving import CHANNEL_OPTIONS, MeshServer, run
from services.mesh.telemetry import FrameTracer

log = logging.getLogger("gateway")
CODEC = codec_pb2.DESCRIPTOR.services_by_name["CodecService"].full_name
LM = lm_pb2.DESCRIPTOR.services_by_name["LmService"].full_name


async def main(config: GatewayConfig) -> None:
    """Serve until a signal."""
    server = MeshServer(config, "gateway")
    began = time.monotonic()
    sessions = SessionStore(config.redis_url)
    await sessions.connect()
    async with (grpc.aio.insecure_channel(config.codec, options=CHANNEL_OPTIONS) as codec_channel,
                grpc.aio.insecure_channel(config.lm, options=CHANNEL_OPTIONS) as lm_channel):
        deadline = began + config.peers_wait_s
        await _wait_until_ready("codec", CODEC, config.codec, codec_channel, deadline)
        await _wait_until_ready("lm", LM, config.lm, lm_channel, deadline)
        codec_info = await codec_pb2_grpc.CodecServiceStub(codec_channel).GetInfo(codec_pb2.GetInfoRequest())
        lm_info = await lm_pb2_grpc.LmServiceStub(lm_channel).GetInfo(lm_pb2.GetInfoRequest())
        if codec_info.model_id != lm_info.model_id:
            raise ModelMismatch(f"the codec at {config.codec} serves {codec_info.model_id} but the lm at {config.lm} "
                                f"serves {lm_info.model_id}; start both with the same --checkpoint")
        tracer = FrameTracer.export_to(config.otlp_endpoint, "gateway")
        await server.start(GatewayServer(codec_channel, lm_channel, sessions, tracer, config.stall_s,
                                         config.idle_s, config.trace_one_in))
        log.info("ready on %s after %.1f s: %s", server.address, time.monotonic() - began, lm_info.model_id)
        await server.run_until_signal()


async def _wait_until_ready(name: str, service: str, target: str, channel: grpc.aio.Channel, deadline: float) -> None:
    """Wait for a service's health to be SERVING. Raises PeerLost at the deadline."""
    health = health_pb2_grpc.HealthStub(channel)
    while True:
        try:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=2.0)
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            problem = "it is not ready"
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise PeerLost(f"what listens at {target} is not the {name} service; correct --{name}") from None
            problem = error.details() or error.code().name
        if time.monotonic() > deadline:
            raise PeerLost(f"the {name} service at {target} is not there ({problem}); start it, or name another one "
                           f"with --{name}")
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    settings = read_config(GatewayConfig, "gateway")
    run("gateway", settings, lambda: main(settings))
