"""One codec and several language models that speak it, through the gateway's own door."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from moshimesh.gateway.v1 import conversation_pb2 as pb

from services.gateway.peers.fleet import Fleet
from services.gateway.peers.replicas import Replicas, lm_facts
from services.mesh.errors import MeshError, ModelMismatch, PeerLost
from tests.gateway.door import Gateway, codec, lm


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
