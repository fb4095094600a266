"""The gRPC edge through a real stub: translation both ways, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from moshimesh.audio.v1 import audio_pb2
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc
from moshimesh.lm.v1 import lm_pb2

from services.gateway.edges.grpc import GrpcEdge
from services.gateway.trust.gate import OpenGate
from services.mesh.errors import REASON_KEY
from tests.gateway.fake_codec import FRAME, RATE
from tests.gateway.fake_lm import DELAY
from tests.gateway.house import House, expected, frame
from tests.gateway.redis_server import RedisServer
from tests.served import Served

Config, Request = conversation_pb2.ConverseConfig, conversation_pb2.ConverseRequest
OFFLINE = conversation_pb2.PACING_OFFLINE
S16 = audio_pb2.AUDIO_ENCODING_PCM_S16LE
FRAMES = 20


@pytest.fixture
async def edge(redis_server: RedisServer) -> AsyncIterator[tuple[Any, House]]:
    """A stub, and the house that its edge leads into."""
    async with House(redis_server.url) as house, Served(
            "gateway", GrpcEdge(house.desk, OpenGate(), stall_s=5.0),
            conversation_pb2_grpc.ConversationServiceStub) as served:
        yield served.stub, house


def audio(data: bytes) -> Request:
    return Request(audio=conversation_pb2.AudioChunk(pcm=data))


async def talk(stub: Any, config: Config, pieces: Sequence[bytes], **options: Any
               ) -> list[conversation_pb2.ConverseResponse]:
    async def requests() -> AsyncIterator[Request]:
        yield Request(config=config)
        for piece in pieces:
            yield audio(piece)

    return [response async for response in stub.Converse(requests(), **options)]


async def test_a_conversation_in_floats(edge) -> None:
    stub, _ = edge
    config = Config(sample_rate_hertz=RATE, pacing=OFFLINE, sampling=lm_pb2.Sampling(seed=7))
    responses = await talk(stub, config, [frame(number).tobytes() for number in range(FRAMES)])
    assert [response.WhichOneof("response") for response in responses] == [
        "ready", *["speech"] * FRAMES, "summary"]
    ready, speech, summary = responses[0].ready, [one.speech for one in responses[1:-1]], responses[-1].summary
    assert (ready.model_id, ready.sample_rate_hertz, ready.samples_per_frame) == ("checksum", RATE, FRAME)
    assert ready.sampling.seed == 7 and ready.resume_handle and ready.resume_grace_ms == 60_000
    assert [[one.text_token, *one.codes] for one in speech] == expected(FRAMES)
    assert all(np.frombuffer(one.pcm, "<f4")[:2].tolist() == list(one.codes) for one in speech)
    assert [one.context.sequence for one in speech] == list(range(DELAY, FRAMES + DELAY))
    assert (summary.frames_in, summary.frames_out, summary.frames_skipped) == (FRAMES, FRAMES, 0)


async def test_a_conversation_in_integers(edge) -> None:
    stub, _ = edge
    silence = np.zeros(FRAME, "<i2").tobytes()
    responses = await talk(stub, Config(sample_rate_hertz=RATE, pacing=OFFLINE, encoding=S16), [silence] * 3)
    assert all(len(one.speech.pcm) == 2 * FRAME for one in responses[1:-1])


@pytest.mark.parametrize(("config", "reason"), [
    (Config(sample_rate_hertz=RATE, encoding=99), "BAD_ENCODING"),
    (Config(sample_rate_hertz=RATE, pacing=99), "BAD_PACING"),
    (Config(sample_rate_hertz=RATE + 1), "BAD_SAMPLE_RATE"),
    (Config(sample_rate_hertz=RATE, first_sequence=1), "RESUME_HANDLE_MISSING"),
    (Config(sample_rate_hertz=RATE, answered_sequence=0), "RESUME_HANDLE_MISSING"),
    (Config(sample_rate_hertz=RATE, resume_handle="?"), "UNKNOWN_SESSION")])
async def test_what_it_refuses_is_said_in_band_and_as_the_status(edge, config: Config, reason: str) -> None:
    stub, house = edge
    call = stub.Converse()
    await call.write(Request(config=config))
    ended = (await call.read()).ended
    assert ended.reason == reason and ended.message
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()
    assert dict(await call.trailing_metadata())[REASON_KEY] == reason
    assert (await call.code()).value[0] == ended.code
    assert house.lm.held == 0


async def test_what_this_mesh_does_not_know_stays_at_the_door(edge) -> None:
    """A message just under the limit whose sampling has an unknown field once broke the tunnel of all callers."""
    stub, _ = edge
    over = asyncio.Event()

    async def neighbour() -> AsyncIterator[Request]:
        yield Request(config=Config(sample_rate_hertz=RATE, pacing=OFFLINE))
        for number in range(FRAMES):
            yield audio(frame(number).tobytes())
            if number == FRAMES // 2:
                await over.wait()

    beside = aiter(stub.Converse(neighbour()))
    assert (await anext(beside)).HasField("ready")
    unknown = b"\xba\x3e" + _varint(1_000_000) + bytes(1_000_000)  # field 999, length-delimited
    sampling = lm_pb2.Sampling.FromString(lm_pb2.Sampling(seed=1).SerializeToString() + unknown)
    assert sampling.ByteSize() > 1_000_000
    config = Config(sample_rate_hertz=RATE, pacing=OFFLINE, sampling=sampling)
    responses = await talk(stub, config, [frame(0).tobytes()])
    assert responses[-1].HasField("summary")
    over.set()
    said = [response.speech async for response in beside if response.HasField("speech")]
    assert [[one.text_token, *one.codes] for one in said] == expected(FRAMES)


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7f:
        data.append(number & 0x7f | 0x80)
        number >>= 7
    return bytes([*data, number])


async def test_facts(edge) -> None:
    stub, _ = edge
    info = await stub.GetInfo(conversation_pb2.GetInfoRequest())
    assert (info.model_id, info.sample_rate_hertz, info.slots_total) == ("checksum", RATE, 8)


async def test_a_callers_key_is_not_kept(edge) -> None:
    """The desk hears of a key only what tells keys apart."""
    stub, house = edge
    callers = []
    hold = house.desk.hold
    house.desk.hold = lambda caller, *rest: callers.append(caller) or hold(caller, *rest)  # type: ignore[method-assign]
    for key in ("secret", "secret", "other"):
        await talk(stub, Config(sample_rate_hertz=RATE, pacing=OFFLINE), [], metadata=(("x-api-key", key),))
    first, second, other = callers
    assert first.key_id == second.key_id != other.key_id
    assert "secret" not in repr(callers) and (first.edge, first.address) == ("grpc", "127.0.0.1")
