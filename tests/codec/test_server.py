"""Sessions that move between two replicas of the codec, over real gRPC, and what a row remembers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2, codec_pb2_grpc

from services.codec.engine import DecodeEngine, EncodeEngine, build_engines
from services.codec.server import DESCRIPTOR, CodecServer
from services.gateway.path.memory import DecoderMemory, EncoderMemory
from services.gateway.peers.tunnel import Method
from services.gateway.sessions.history import History
from services.mesh.checkpoint import load_mimi, resolve
from services.mesh.errors import REASON_KEY, MeshError
from services.mesh.telemetry import FrameTracer
from tests.served import Served

Pcm = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]
SLOTS, SAMPLES, FRAMES, AFTER = 3, 1920, 149, 100
ENCODE = Method(f"/{DESCRIPTOR.full_name}/Encode", codec_pb2.EncodeRequest, codec_pb2.EncodeResponse)
DECODE = Method(f"/{DESCRIPTOR.full_name}/Decode", codec_pb2.DecodeRequest, codec_pb2.DecodeResponse)


class Replica(Served):
    """One replica."""

    def __init__(self, engines: tuple[EncodeEngine, DecodeEngine]) -> None:
        super().__init__("codec", CodecServer(*engines, "talker", FrameTracer(), 5.0), codec_pb2_grpc.CodecServiceStub)

    async def info(self) -> codec_pb2.GetInfoResponse:
        return await self.stub.GetInfo(codec_pb2.GetInfoRequest())

    async def all_free(self) -> bool:
        for _ in range(100):
            info = await self.info()
            if info.encode_slots_free == info.decode_slots_free == SLOTS:
                return True
            await asyncio.sleep(0.01)
        return False


class Session:
    """One call, direct or through the tunnel, in the direction that its first message has."""

    def __init__(self, replica: Replica, opening: list[Any], tunnelled: bool = False) -> None:
        encodes = isinstance(opening[0], codec_pb2.EncodeRequest)
        self._tunnelled, self._opening = tunnelled, opening
        if tunnelled:
            self.call: Any = replica.tunnel.call(ENCODE if encodes else DECODE)
        else:
            self.call = replica.stub.Encode() if encodes else replica.stub.Decode()
        self._responses = aiter(self.call)

    async def open(self) -> Any:
        for message in self._opening:
            await self._send(message)
        return (await anext(self._responses)).ready

    async def step(self, request: Any) -> Any:
        await self._send(request)
        return (await anext(self._responses)).frame

    async def steps(self, requests: Iterable[Any]) -> list[Any]:
        return [await self.step(request) for request in requests]

    async def _send(self, request: Any) -> None:
        if self._tunnelled:
            self.call.send(request)
        else:
            await self.call.write(request)


def encode_config(**config: Any) -> list[codec_pb2.EncodeRequest]:
    return [codec_pb2.EncodeRequest(config=codec_pb2.EncodeConfig(session_id="session", **config))]


def past(pcm: bytes, encoding: audio_pb2.AudioEncoding = audio_pb2.AUDIO_ENCODING_PCM_F32LE
         ) -> codec_pb2.EncodeRequest:
    return codec_pb2.EncodeRequest(past=codec_pb2.EncodePast(pcm=pcm, encoding=encoding))


def decode_config(**config: Any) -> list[codec_pb2.DecodeRequest]:
    return [codec_pb2.DecodeRequest(config=codec_pb2.DecodeConfig(session_id="session", **config))]


def pcm_requests(pcm: Pcm) -> list[codec_pb2.EncodeRequest]:
    return [codec_pb2.EncodeRequest(frame=audio_pb2.PcmFrame(pcm=frame.tobytes())) for frame in pcm]


def codes_requests(codes: Codes) -> list[codec_pb2.DecodeRequest]:
    return [codec_pb2.DecodeRequest(frame=audio_pb2.CodeFrame(codes=frame)) for frame in codes.tolist()]


def codes_of(frames: list[audio_pb2.CodeFrame]) -> Codes:
    return np.array([frame.codes for frame in frames])


def pcm_of(frames: list[audio_pb2.PcmFrame]) -> Pcm:
    return np.array([np.frombuffer(frame.pcm, "<f4") for frame in frames])


@pytest.fixture(scope="module")
def engines(checkpoint: str) -> tuple[EncodeEngine, DecodeEngine]:
    torch.set_num_threads(1)
    return build_engines(load_mimi(resolve(checkpoint)), SLOTS)


@pytest.fixture(scope="module")
async def replicas(checkpoint: str, engines: tuple[EncodeEngine, DecodeEngine]
                   ) -> AsyncIterator[tuple[Replica, Replica]]:
    async with Replica(engines) as one, Replica(build_engines(load_mimi(resolve(checkpoint)), SLOTS)) as two:
        yield one, two


@pytest.fixture(scope="module")
def frames(speech: Pcm) -> Pcm:
    return speech[:FRAMES * SAMPLES].reshape(FRAMES, SAMPLES)


@pytest.fixture(scope="module")
async def encoded(replicas: tuple[Replica, Replica], frames: Pcm) -> Codes:
    """The codes of a session that never moved, cleared after its first frame."""
    session = Session(replicas[0], encode_config(reset_after_first_frame=True))
    await session.open()
    codes = codes_of(await session.steps(pcm_requests(frames)))
    session.call.cancel()
    return codes


@pytest.fixture(scope="module")
async def decoded(replicas: tuple[Replica, Replica], encoded: Codes) -> Pcm:
    """The audio of a session that never moved."""
    session = Session(replicas[0], decode_config())
    await session.open()
    pcm = pcm_of(await session.steps(codes_requests(encoded)))
    session.call.cancel()
    return pcm


def test_a_row_remembers_as_far_as_its_convolutions_and_attention_reach(
        engines: tuple[EncodeEngine, DecodeEngine], frames: Pcm) -> None:
    """All later answers are those of a row that has heard everything; a few frames less, and they are not."""
    encoder, decoder = engines
    # 2 layers that look back 23 of their 2 steps a frame; 2.7 and 4.7 frames of convolutions.
    assert (encoder.facts.priming_frames, decoder.facts.priming_frames) == (26, 28)
    cut = FRAMES - AFTER
    encoder.open(0)
    decoder.open(0)
    codes = np.concatenate([encoder.step([0], frame[None]) for frame in frames])
    pcm = np.concatenate([decoder.step([0], frame[None]) for frame in codes])

    def primed(engine: EncodeEngine | DecodeEngine, inputs: Any, frames: int) -> Any:
        engine.open(1)
        return np.concatenate([engine.step([1], frame[None]) for frame in inputs[cut - frames:]])[frames:]

    assert np.array_equal(primed(encoder, frames, 26), codes[cut:])
    np.testing.assert_allclose(primed(decoder, codes, 28), pcm[cut:], atol=1e-6)
    assert np.mean(primed(encoder, frames, 6) == codes[cut:]) < 0.99
    assert np.abs(primed(decoder, codes, 6) - pcm[cut:]).max() > 1e-5


async def test_the_services_say_how_much_is_worth_bringing(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    encoding, decoding = Session(one, encode_config()), Session(one, decode_config())
    assert (await encoding.open()).priming_frames == 28
    assert (await decoding.open()).priming_frames == 28
    assert (await one.info()).priming_frames == 28
    encoding.call.cancel()
    decoding.call.cancel()
    assert await one.all_free()


@pytest.mark.parametrize("tunnelled", [False, True], ids=["direct", "tunnelled"])
@pytest.mark.parametrize("before", [0, 1, 2, 10, 49])
async def test_an_encoding_session_goes_on_at_another_replica(
        replicas: tuple[Replica, Replica], frames: Pcm, encoded: Codes, before: int, tunnelled: bool) -> None:
    one, two = replicas
    memory, requests = EncoderMemory("session", 0, 8), pcm_requests(frames)
    session = Session(one, memory.opening(), tunnelled)
    memory.opened(await session.open())
    for request in requests[:before]:
        memory.answered(request, await session.step(request))
    session.call.cancel()

    neighbour = Session(two, encode_config(reset_after_first_frame=True))
    await neighbour.open()
    stepping = asyncio.create_task(neighbour.steps(requests[:60]))
    moved = Session(two, memory.opening(), tunnelled)
    await moved.open()
    assert np.array_equal(codes_of(await moved.steps(requests[before:before + AFTER])), encoded[before:before + AFTER])
    assert np.array_equal(codes_of(await stepping), encoded[:60])
    moved.call.cancel()
    neighbour.call.cancel()
    assert await one.all_free()
    assert await two.all_free()


@pytest.mark.parametrize("tunnelled", [False, True], ids=["direct", "tunnelled"])
@pytest.mark.parametrize("before", [0, 1, 2, 10, 49])
async def test_a_decoding_session_goes_on_at_another_replica(
        replicas: tuple[Replica, Replica], encoded: Codes, decoded: Pcm, before: int, tunnelled: bool) -> None:
    _, two = replicas
    history = History(8, 8, 0, 250)
    for sequence, codes in enumerate(encoded[:before].tolist()):
        history.append(sequence, codes, [0, *codes])
    requests = codes_requests(encoded)
    neighbour = Session(two, decode_config())
    await neighbour.open()
    stepping = asyncio.create_task(neighbour.steps(requests[:60]))
    moved = Session(two, DecoderMemory("session", history, 28).opening(), tunnelled)
    await moved.open()
    np.testing.assert_allclose(pcm_of(await moved.steps(requests[before:before + AFTER])),
                               decoded[before:before + AFTER], atol=1e-6)
    np.testing.assert_allclose(pcm_of(await stepping), decoded[:60], atol=1e-6)
    moved.call.cancel()
    neighbour.call.cancel()
    assert await two.all_free()


async def test_a_session_with_a_past_is_not_cleared_behind_the_next_frame(
        replicas: tuple[Replica, Replica], frames: Pcm, encoded: Codes) -> None:
    _, two = replicas
    session = Session(two, [
        *encode_config(reset_after_first_frame=True, past_frames=28), past(frames[1:29].tobytes())])
    await session.open()
    assert np.array_equal(codes_of(await session.steps(pcm_requests(frames[29:40]))), encoded[29:40])
    session.call.cancel()
    assert await two.all_free()


@pytest.mark.parametrize("sixteen_bit", [False, True], ids=["floats", "16 bit"])
@pytest.mark.parametrize("codebooks", [0, 4, 5])
async def test_a_session_may_have_fewer_codebooks(
        replicas: tuple[Replica, Replica], engines: tuple[EncodeEngine, DecodeEngine], frames: Pcm, encoded: Codes,
        codebooks: int, sixteen_bit: bool) -> None:
    """Of the models that hear or speak fewer than the codec has, also after a move."""
    one, two = replicas
    if not sixteen_bit:
        frames = frames * np.float32(0.77)
    count, requests = codebooks or 8, pcm_requests(frames[:60])
    memory = EncoderMemory("session", 0, codebooks)
    session = Session(one, memory.opening())
    ready = await session.open()
    assert ready.codebooks == count
    memory.opened(ready)
    codes = []
    for request in requests[:40]:
        codes.append(await session.step(request))
        memory.answered(request, codes[-1])
    session.call.cancel()
    opening = memory.opening()
    assert {message.past.encoding == audio_pb2.AUDIO_ENCODING_PCM_S16LE for message in opening[1:]} == {sixteen_bit}
    moved = Session(two, opening)
    assert (await moved.open()).codebooks == count
    codes += await moved.steps(requests[40:])
    assert codes_of(codes).shape == (60, count)
    if sixteen_bit:
        assert np.array_equal(codes_of(codes), encoded[:60, :count])
    moved.call.cancel()

    history = History(8, count, 0, 250)
    for sequence, frame in enumerate(codes_of(codes).tolist()):
        history.append(sequence, frame + [0] * (8 - count), [0, *frame])
    decoding = Session(one, decode_config(codebooks=codebooks))
    assert (await decoding.open()).codebooks == count
    pcm = pcm_of(await decoding.steps(codes_requests(codes_of(codes))))
    after = Session(two, DecoderMemory("session", history, 28).opening())
    await after.open()
    more = codes_requests(encoded[60:70, :count])
    np.testing.assert_allclose(pcm_of(await after.steps(more)), pcm_of(await decoding.steps(more)), atol=1e-6)
    assert len(np.unique(pcm)) > 1000
    decoding.call.cancel()
    after.call.cancel()
    assert await one.all_free()
    assert await two.all_free()


FRAME = bytes(4 * SAMPLES)
S16, UNKNOWN = audio_pb2.AUDIO_ENCODING_PCM_S16LE, 77


@pytest.mark.parametrize(("opening", "reason"), [
    ([*encode_config(past_frames=1), past(FRAME[4:])], "BAD_PCM"),
    ([*encode_config(past_frames=2), past(FRAME + bytes(4))], "BAD_PCM"),
    ([*encode_config(past_frames=1), past(FRAME * 2)], "BAD_PCM"),
    ([*encode_config(past_frames=2), past(FRAME), past(b"")], "BAD_PCM"),
    ([*encode_config(past_frames=1), past(FRAME, S16)], "BAD_PCM"),
    ([*encode_config(past_frames=1), past(FRAME, UNKNOWN)], "BAD_PCM"),
    (encode_config(past_frames=29), "BAD_PCM"),
    (encode_config(past_frames=2**32 - 1), "BAD_PCM"),
    ([*encode_config(past_frames=1), *pcm_requests(np.zeros((1, SAMPLES), np.float32))], "EMPTY_REQUEST"),
    ([*encode_config(past_frames=1), *encode_config()], "CONFIG_TWICE"),
    ([*encode_config(past_frames=2), past(FRAME + np.full(SAMPLES, np.nan, "<f4").tobytes())], "BAD_PCM"),
    ([*encode_config(past_frames=1), past(np.full(SAMPLES, 101, "<f4").tobytes())], "BAD_PCM"),
    (encode_config(codebooks=9), "BAD_CODES"),
    (decode_config(codebooks=9), "BAD_CODES"),
    (decode_config(codebooks=4, priming_codes=[1] * 6), "BAD_CODES"),
    (decode_config(priming_codes=[1] * 7), "BAD_CODES"),
    (decode_config(priming_codes=[1] * 9), "BAD_CODES"),
    (decode_config(priming_codes=[1] * 8 * 29), "BAD_CODES"),
    (decode_config(priming_codes=[1] * 15 + [1024]), "BAD_CODES"),
    (decode_config(priming_codes=[2**32 - 1] * 8), "BAD_CODES"),
], ids=["part", "part more", "more than said", "nothing", "half a frame", "encoding", "many", "very many", "frame",
        "config", "nan", "loud", "codebooks", "own codebooks", "part of a frame's codes", "codes missing",
        "codes more", "many codes", "code", "huge"])
@pytest.mark.parametrize("tunnelled", [False, True], ids=["direct", "tunnelled"])
async def test_a_bad_past_is_refused(replicas: tuple[Replica, Replica], opening: Any, reason: str,
                                     tunnelled: bool) -> None:
    _, two = replicas
    with pytest.raises((grpc.aio.AioRpcError, MeshError)) as caught:
        await Session(two, opening, tunnelled).open()
    if isinstance(caught.value, grpc.aio.AioRpcError):
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert (REASON_KEY, reason) in tuple(caught.value.trailing_metadata())
    else:
        assert caught.value.reason == reason
        assert caught.value.metadata["field"].startswith(("config", "past"))
    assert await two.all_free()


async def test_a_row_whose_tenant_left_while_its_row_was_primed_starts_from_nothing(
        replicas: tuple[Replica, Replica], frames: Pcm, encoded: Codes) -> None:
    _, two = replicas
    for _ in range(5):
        leaving = Session(two, [*encode_config(past_frames=28), past(frames[:28].tobytes())], tunnelled=True)
        opening = asyncio.create_task(leaving.open())
        await asyncio.sleep(0.02)
        leaving.call.cancel()
        opening.cancel()
        fresh = Session(two, encode_config(reset_after_first_frame=True), tunnelled=True)
        await fresh.open()
        assert np.array_equal(codes_of(await fresh.steps(pcm_requests(frames[:10]))), encoded[:10])
        fresh.call.cancel()
    assert await two.all_free()


async def test_a_draining_replica_says_so_and_its_sessions_go_on(
        checkpoint: str, frames: Pcm, encoded: Codes) -> None:
    async with Replica(build_engines(load_mimi(resolve(checkpoint)), SLOTS)) as replica:
        session = Session(replica, encode_config(reset_after_first_frame=True))
        await session.open()
        assert not (await replica.info()).draining
        replica.service.drain()
        info = await replica.info()
        assert (info.draining, info.encode_slots_free, info.decode_slots_free) == (True, 0, 0)
        assert np.array_equal(codes_of(await session.steps(pcm_requests(frames[:5]))), encoded[:5])
        with pytest.raises(grpc.aio.AioRpcError, match="stopping"):
            await Session(replica, decode_config()).open()


async def test_the_codes_of_silence_are_announced_and_sound_like_it(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    session = Session(one, encode_config())
    silence = list((await session.open()).silence_codes)
    session.call.cancel()
    speaking = Session(one, decode_config())
    await speaking.open()
    sound = [np.frombuffer((await speaking.step(codec_pb2.DecodeRequest(
        frame=audio_pb2.CodeFrame(codes=silence)))).pcm, "<f4") for _ in range(20)]
    speaking.call.cancel()
    assert max(np.abs(frame).max() for frame in sound[5:]) < 0.001
    assert await one.all_free()
