"""One codec and several language models that speak it, through the gateway's own door."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
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
from services.lm.sampling import Sampling
from services.lm.server import LmServer
from services.mesh.errors import MeshError, ModelMismatch, PeerLost, from_rpc_error
from services.mesh.telemetry import FrameTracer
from tests.gateway.fake_observer import Heard
from tests.gateway.redis_server import RedisServer
from tests.served import Served


def codec(codec_id: str, slots: int) -> Served:
    """A codec that computes nothing."""
    engines: Any = (NullEngine(slots, np.zeros(8, np.int64)), NullEngine(slots, np.zeros(1920, np.float32)))
    return Served("codec", CodecServer(*engines, codec_id, FrameTracer(), 5.0), codec_pb2_grpc.CodecServiceStub)


def lm(model_id: str, codec_id: str, slots: int) -> Served:
    """A language model that computes nothing."""
    engine: Any = NullEngine(slots, np.zeros(9, np.int64), 1)
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
        desk = Desk(resources, Limits(self._store, 0), lambda call_id, opening: Heard(), drain_s=1.0)
        self._door = Served("gateway", GrpcEdge(desk, 5.0), conversation_pb2_grpc.ConversationServiceStub)
        await self._door.__aenter__()
        self.stub = self._door.stub
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


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with Gateway([codec("mimi", 6)], [lm("one", "mimi", 3), lm("two", "mimi", 4)]) as running:
        yield running


async def test_models_that_share_a_codec_are_listed_with_their_room(gateway: Gateway) -> None:
    models = (await gateway.stub.ListModels(pb.ListModelsRequest())).models
    assert [(model.model_id, model.codec_id, model.slots_total, model.slots_free) for model in models] == [
        ("one", "mimi", 3, 3), ("two", "mimi", 4, 4)]
    assert {(model.sample_rate_hertz, model.samples_per_frame) for model in models} == {(24_000, 1920)}
    info = await gateway.stub.GetInfo(pb.GetInfoRequest())
    assert (info.model_id, info.codec_id, info.slots_free) == ("two", "mimi", 4)


async def test_a_caller_chooses_a_model_or_gets_the_one_with_most_room(gateway: Gateway) -> None:
    for asked, expected in (("one", "one"), ("two", "two"), ("", "two")):
        ready = await gateway.ready(asked)
        assert (ready.model_id, ready.codec_id) == (expected, "mimi")


async def test_a_model_that_nobody_serves_is_refused_by_name(gateway: Gateway) -> None:
    for asked in ("three", "mimi", "x" * 100_000):
        with pytest.raises(MeshError) as caught:
            await gateway.ready(asked)
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")
        assert caught.value.metadata == {"served": "one, two"}
        assert len(caught.value.message) < 200


async def test_a_model_without_its_codec_is_not_one_that_can_be_had() -> None:
    async with Gateway([codec("mimi", 2)], [lm("one", "mimi", 1), lm("two", "another", 4)]) as gateway:
        assert [model.model_id for model in gateway.fleet.models()] == ["one"]
        assert (await gateway.ready("")).model_id == "one"
        with pytest.raises(MeshError, match="serves the codec of two") as caught:
            await gateway.ready("two")
        assert caught.value.reason == PeerLost.reason
    async with Gateway([codec("mimi", 2)], [lm("two", "another", 4)]) as gateway:
        with pytest.raises(ModelMismatch, match="two speaks another, but codec serves mimi"):
            gateway.fleet.models()


async def test_a_service_that_is_away_is_named() -> None:
    nobody = Replicas("lm", "", lm_facts)
    async with Gateway([codec("mimi", 2)], [lm("one", "mimi", 1)]) as gateway:
        with pytest.raises(PeerLost, match="no lm replica"):
            Fleet(gateway.fleet.codec, nobody).models()
