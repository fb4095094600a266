"""A gateway with its gRPC door in this process, over a real Redis and services that compute nothing."""

from __future__ import annotations

import time
from typing import Any

import grpc
import numpy as np
from moshimesh.codec.v1 import codec_pb2_grpc
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.gateway.v1 import conversation_pb2_grpc
from moshimesh.lm.v1 import lm_pb2_grpc

from harness.null_services import NullEngine, NullTokenizer
from services.codec.server import CodecServer
from services.gateway.calls.desk import Desk
from services.gateway.calls.limits import Limits
from services.gateway.calls.resources import Resources
from services.gateway.calls.waiting import WaitingLine
from services.gateway.edges.grpc import GrpcEdge
from services.gateway.peers.fleet import Fleet
from services.gateway.peers.replicas import Replicas, codec_facts, lm_facts
from services.gateway.sessions.sessions import Sessions
from services.gateway.store import Store
from services.gateway.trust.gate import OpenGate
from services.gateway.watching.metering import GatewayMetrics
from services.gateway.watching.recent import RecentFrames
from services.gateway.watching.watcher import watcher
from services.lm.sampling import Sampling
from services.lm.server import LmServer
from services.mesh.errors import from_rpc_error
from services.mesh.metrics import Metrics
from services.mesh.telemetry import FrameTracer
from tests.gateway.redis_server import RedisServer
from tests.served import Served


def codec(codec_id: str, slots: int) -> Served:
    """A codec that computes nothing."""
    encoder: Any = NullEngine(slots, np.zeros(8, np.int64))
    decoder: Any = NullEngine(slots, np.zeros(1920, np.float32))
    return Served("codec", CodecServer(encoder, decoder, codec_id, FrameTracer(), 5.0), codec_pb2_grpc.CodecServiceStub)


def lm(model_id: str, codec_id: str, slots: int, engine: Any = None) -> Served:
    """A language model that computes nothing, unless it has an engine of its own."""
    engine = engine or NullEngine(slots, np.zeros(9, np.int64), 1)
    return Served("lm", LmServer(engine, NullTokenizer(), Sampling(), model_id, codec_id, FrameTracer(), 5.0),
                  lm_pb2_grpc.LmServiceStub)


class Gateway:
    """A gateway's desk and door in this process, over these services and a real Redis."""

    def __init__(self, codecs: list[Served], lms: list[Served]) -> None:
        self._served = [*codecs, *lms]
        self._codecs, self._lms = codecs, lms

    async def __aenter__(self) -> Gateway:
        for one in self._served:
            await one.__aenter__()
        self._redis = RedisServer()
        self._store = Store(self._redis.url)
        await self._store.connect()
        self.fleet = Fleet(Replicas("codec", ",".join(one.address for one in self._codecs), codec_facts),
                           Replicas("lm", ",".join(one.address for one in self._lms), lm_facts))
        for pool in (self.fleet.codec, self.fleet.lm):
            await pool.connect(time.monotonic() + 5)
            await pool.refresh()
        resources = Resources(self.fleet, Sessions(self._store, "here", 60.0), WaitingLine(self._store, 5),
                              longest_call_s=60.0, idle_s=60.0, stall_s=5.0)
        self.overload = resources.overload
        watch = watcher(FrameTracer(), GatewayMetrics(Metrics()), RecentFrames(), self.overload, 100)
        self.desk = Desk(resources, Limits(self._store), watch, drain_s=1.0)
        self._door = Served("gateway", GrpcEdge(self.desk, OpenGate(), 5.0),
                            conversation_pb2_grpc.ConversationServiceStub)
        await self._door.__aenter__()
        self.stub, self.channel = self._door.stub, self._door.channel
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._door.__aexit__()
        await self.fleet.codec.close()
        await self.fleet.lm.close()
        await self._store.close()
        self._redis.close()
        for one in self._served:
            await one.__aexit__()

    async def ready(self, model: str) -> pb.ConverseReady:
        """What a conversation with this model is told at its begin. Raises MeshError."""
        call = self.stub.Converse()
        try:
            await call.write(pb.ConverseRequest(config=pb.ConverseConfig(
                sample_rate_hertz=24_000, pacing=pb.PACING_OFFLINE, model=model)))
            response = await call.read()
            if response.HasField("ended"):  # the status follows
                await call.done_writing()
                await call.read()
            return response.ready
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, "gateway") from None
        finally:
            call.cancel()
