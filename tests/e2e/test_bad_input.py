"""What the contract forbids gets a precise status, gives its slot back, and disturbs nobody."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc
import moshimesh
import numpy as np
import numpy.typing as npt
import pytest
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2, codec_pb2_grpc
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.gateway.v1 import conversation_pb2_grpc
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc

from harness.local_mesh import LocalMesh
from harness.null_mesh import NullMesh
from tests.e2e.calls import GREEDY, Call, call, ending, error_info, free_slots, slots_are_free
from tests.until import until

Pcm = npt.NDArray[np.float32]
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def config(**changes: Any) -> pb.ConverseRequest:
    fields = {"sample_rate_hertz": 24_000, "pacing": pb.PACING_OFFLINE} | changes
    return pb.ConverseRequest(config=pb.ConverseConfig(**fields))


def audio(pcm: bytes = bytes(4 * 1920)) -> pb.ConverseRequest:
    return pb.ConverseRequest(audio=pb.AudioChunk(pcm=pcm))


def floats(value: float) -> bytes:
    return np.full(1920, value, dtype="<f4").tobytes()


def sampling(**fields: Any) -> pb.ConverseRequest:
    return config(sampling=lm_pb2.Sampling(**fields))


BAD_CALLS: dict[str, tuple[list[pb.ConverseRequest], grpc.StatusCode, str]] = {
    "no config first": ([audio()], INVALID, "CONFIG_MISSING"),
    "nothing at all": ([], INVALID, "CONFIG_MISSING"),
    "config twice": ([config(), audio(), config()], INVALID, "CONFIG_TWICE"),
    "empty message": ([config(), pb.ConverseRequest()], INVALID, "EMPTY_REQUEST"),
    "NaN": ([config(), audio(), audio(floats(float("nan")))], INVALID, "BAD_PCM"),
    "infinity": ([config(), audio(floats(float("inf")))], INVALID, "BAD_PCM"),
    "a sample that would overflow": ([config(), audio(floats(1e30))], INVALID, "BAD_PCM"),
    "unknown pacing": ([config(pacing=77)], INVALID, "BAD_PACING"),
    "odd byte count, floats": ([config(), audio(bytes(7681))], INVALID, "BAD_PCM"),
    "odd byte count, integers": ([config(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE), audio(bytes(3841))], INVALID,
                                 "BAD_PCM"),
    "an empty piece": ([config(), audio(b"")], INVALID, "BAD_PCM"),
    "a piece of more than a second": ([config(), audio(bytes(4 * 24_001))], INVALID, "BAD_PCM"),
    "wrong sample rate": ([config(sample_rate_hertz=11_025)], INVALID, "BAD_SAMPLE_RATE"),
    "unknown encoding": ([config(encoding=77)], INVALID, "BAD_ENCODING"),
    **{f"a handle that nobody gave, {handle[:8]}": ([config(resume_handle=handle)], NOT_FOUND, "UNKNOWN_SESSION")
       for handle in ("nobody", "0" * 100, "a.b", "é")},
    "negative temperature": ([sampling(text_temperature=-0.1)], INVALID, "BAD_SAMPLING"),
    "temperature too high": ([sampling(text_temperature=11.0)], INVALID, "BAD_SAMPLING"),
    "temperature that is not a number": ([sampling(audio_temperature=float("nan"))], INVALID,
                                         "BAD_SAMPLING"),
    "seed beyond 63 bits": ([sampling(seed=2**63)], INVALID, "BAD_SAMPLING"),
}


@pytest.fixture(scope="module")
def short(speech: Pcm) -> Pcm:
    """Two seconds of speech for the neighbour."""
    return speech[:48_000]


@pytest.fixture(scope="module")
async def undisturbed(mesh_target: str, short: Pcm) -> Call:
    """The neighbour's call when it is alone."""
    return await call(mesh_target, short, **GREEDY)


@contextlib.asynccontextmanager
async def neighbour(mesh: LocalMesh, short: Pcm, undisturbed: Call) -> AsyncIterator[None]:
    """Somebody else's call, running while the block does; afterwards it is as it was alone and all slots are free."""
    running = asyncio.create_task(call(mesh.target, short, **GREEDY))

    async def is_there() -> bool:
        return running.done() or min(await free_slots(mesh)) < mesh.slots

    await until(is_there)
    try:
        yield
    finally:
        answer = await running
    assert (answer.tokens == undisturbed.tokens).all()
    assert await slots_are_free(mesh)


async def refusal(stream: Any, requests: Sequence[Any]) -> grpc.aio.AioRpcError:
    """What a stream ends with after these requests; half-closed when there are none, or when the reason comes in-band.

    Nothing is written after the request that is at fault: grpc.aio loses the status when a write fails because the
    call has ended (https://github.com/grpc/grpc/issues/36066).
    """
    ended = asyncio.Event()

    async def send() -> AsyncIterator[Any]:
        for request in requests:
            yield request
        if requests:
            await ended.wait()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for response in stream(send()):
            if response.WhichOneof("response") == "ended":
                ended.set()
    ended.set()
    return caught.value


@pytest.mark.parametrize("name", BAD_CALLS)
async def test_bad_calls(mesh: LocalMesh, short: Pcm, undisturbed: Call, name: str) -> None:
    requests, code, reason = BAD_CALLS[name]
    async with neighbour(mesh, short, undisturbed), grpc.aio.insecure_channel(mesh.target) as channel:
        error = await refusal(conversation_pb2_grpc.ConversationServiceStub(channel).Converse, requests)
    assert (error.code(), error_info(error).reason) == (code, reason), error.details()
    assert dict(error.trailing_metadata())["moshimesh-reason"] == reason
    assert error.details()


BAD_CODES = {"out of range": [0] * 7 + [70_000], "too few": [0] * 7, "too many": [0] * 9, "none": []}


@pytest.mark.parametrize("name", BAD_CODES)
async def test_bad_codes(mesh: LocalMesh, name: str) -> None:
    frame = audio_pb2.CodeFrame(codes=BAD_CODES[name])
    async with (grpc.aio.insecure_channel(f"localhost:{mesh.codec_port}") as codec,
                grpc.aio.insecure_channel(f"localhost:{mesh.lm_port}") as lm):
        errors = [
            await refusal(codec_pb2_grpc.CodecServiceStub(codec).Decode, [
                codec_pb2.DecodeRequest(config=codec_pb2.DecodeConfig(session_id="test")),
                codec_pb2.DecodeRequest(frame=frame)]),
            await refusal(lm_pb2_grpc.LmServiceStub(lm).Step, [
                lm_pb2.StepRequest(config=lm_pb2.StepConfig(session_id="test")),
                lm_pb2.StepRequest(step=lm_pb2.StepInput(frame=frame))]),
        ]
    for error, field in zip(errors, ("frame.codes", "step.frame.codes"), strict=True):
        assert (error.code(), error_info(error).reason) == (INVALID, "BAD_CODES")
        assert error_info(error).metadata["field"] == field
    assert await slots_are_free(mesh)


@pytest.mark.parametrize(("pcm", "reason"), [(bytes(10), "BAD_PCM"), (floats(float("nan")), "BAD_PCM")])
async def test_bad_pcm_at_the_codec(mesh: LocalMesh, pcm: bytes, reason: str) -> None:
    async with grpc.aio.insecure_channel(f"localhost:{mesh.codec_port}") as channel:
        error = await refusal(codec_pb2_grpc.CodecServiceStub(channel).Encode, [
            codec_pb2.EncodeRequest(config=codec_pb2.EncodeConfig(session_id="test")),
            codec_pb2.EncodeRequest(frame=audio_pb2.PcmFrame(pcm=pcm))])
    assert (error.code(), error_info(error).reason) == (INVALID, reason)
    assert await slots_are_free(mesh)


async def test_a_message_of_100_mb(mesh: LocalMesh, short: Pcm, undisturbed: Call) -> None:
    """gRPC itself refuses it, before any handler sees it."""
    async with neighbour(mesh, short, undisturbed), grpc.aio.insecure_channel(mesh.target) as channel:
        error = await refusal(conversation_pb2_grpc.ConversationServiceStub(channel).Converse,
                              [config(), audio(bytes(100 << 20))])
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_half_close_before_the_first_frame(mesh: LocalMesh) -> None:
    async with grpc.aio.insecure_channel(mesh.target) as channel:
        stream = conversation_pb2_grpc.ConversationServiceStub(channel).Converse()
        await stream.write(config())
        await stream.done_writing()
        kinds = [response.WhichOneof("response") async for response in stream]
        assert await stream.code() == grpc.StatusCode.OK
    assert kinds == ["ready", "summary"]
    assert await slots_are_free(mesh)


async def test_a_caller_who_vanishes_mid_frame(mesh: LocalMesh, short: Pcm, undisturbed: Call) -> None:
    async with neighbour(mesh, short, undisturbed):
        channel = grpc.aio.insecure_channel(mesh.target)
        stream = conversation_pb2_grpc.ConversationServiceStub(channel).Converse()
        await stream.write(config())
        assert (await stream.read()).WhichOneof("response") == "ready"
        for _ in range(3):
            await stream.write(audio(bytes(4 * 1000)))
        await channel.close(None)


async def test_a_caller_who_never_reads(mesh: LocalMesh, short: Pcm, undisturbed: Call) -> None:
    """The answers pile up in the transport until its window is full; then the call is ended, not the mesh.

    A caller with threads: at the end its write is blocked, and grpc.aio would lose the status (grpc's issue 36066).
    """
    over = threading.Event()

    def requests() -> Iterator[pb.ConverseRequest]:
        yield config()
        while not over.is_set():
            yield audio()

    async with neighbour(mesh, short, undisturbed):
        with grpc.insecure_channel(mesh.target) as channel:
            stream = conversation_pb2_grpc.ConversationServiceStub(channel).Converse(requests())
            assert not await slots_are_free(mesh, 2.0), "the call should still be open"
            assert await slots_are_free(mesh, 60.0), "the slot did not come back"
            with pytest.raises(grpc.RpcError) as caught:
                await asyncio.to_thread(list, stream)
            over.set()
        assert (caught.value.code(), error_info(caught.value).reason) == (
            grpc.StatusCode.DEADLINE_EXCEEDED, "SLOW_CALLER")


async def test_callers_who_hang_up_at_once(mesh: LocalMesh) -> None:
    """A cancellation that arrives together with the config must not be lost on the way (Python < 3.12)."""
    async with grpc.aio.insecure_channel(mesh.target) as channel:
        stub = conversation_pb2_grpc.ConversationServiceStub(channel)
        for attempt in range(60):
            stream = stub.Converse()
            await stream.write(config())
            await asyncio.sleep(0.0002 * attempt)
            stream.cancel()
    assert await slots_are_free(mesh)


async def test_an_error_of_the_callers_own_audio_reaches_the_caller(mesh: LocalMesh) -> None:
    async def microphone() -> AsyncIterator[bytes]:
        yield bytes(3840)
        raise OSError("unplugged")

    async with moshimesh.connect(mesh.target) as connected:
        with pytest.raises(OSError, match="unplugged"):
            async for _ in connected.converse(microphone()):
                pass
    assert await slots_are_free(mesh)


async def test_a_caller_who_says_nothing() -> None:
    async with NullMesh(slots=1, environment={"MOSHIMESH_IDLE_S": "1"}) as mesh:
        async with grpc.aio.insecure_channel(mesh.target) as channel:
            error = await refusal(conversation_pb2_grpc.ConversationServiceStub(channel).Converse, [config()])
        assert (error.code(), error_info(error).reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE_CALLER")
        assert await slots_are_free(mesh)


async def test_a_call_that_a_drain_cuts_is_told_why() -> None:
    async with NullMesh(slots=1, environment={"MOSHIMESH_DRAIN_S": "1"}) as mesh:
        async with grpc.aio.insecure_channel(mesh.target) as channel:
            stream = conversation_pb2_grpc.ConversationServiceStub(channel).Converse()
            await stream.write(config())
            assert (await stream.read()).WhichOneof("response") == "ready"
            mesh.processes["gateway"].send(signal.SIGTERM)
            # Also a caller who says nothing is told.
            assert (await stream.read()).go_away.time_left_ms == 1000
            said, error = await ending(stream)
        assert (error.code(), error_info(error).reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert said == "DRAINING"
        assert await slots_are_free(mesh)
