"""More callers than slots: they wait in line, and are refused when the line is full. Limits of keys and of length."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import moshimesh
import pytest
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc

from harness.null_mesh import NullMesh
from tests.e2e.calls import ending, error_info
from tests.until import until

FRAME = bytes(1920 * 2)


@pytest.fixture(scope="module")
async def small() -> AsyncIterator[NullMesh]:
    """Two slots, one place in the line, two calls per key, calls of at most 3 s."""
    async with NullMesh(slots=2, gateway_flags=["--most-waiting", "1", "--calls-per-key", "2", "--longest-call-s", "3"]
                        ) as mesh:
        yield mesh


async def talk(mesh: NullMesh, frames: int = 10**9, api_key: str = "", pace_s: float = 0.02) -> AsyncIterator[object]:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(frames):
            await asyncio.sleep(pace_s)
            yield FRAME

    async with moshimesh.connect(mesh.target) as connected:
        events = connected.converse(pieces(), pacing="offline", api_key=api_key)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()


async def test_a_line_and_a_full_line(small: NullMesh) -> None:
    talking = [talk(small, api_key=f"talks {number}") for number in range(2)]
    for events in talking:
        assert isinstance(await events.__anext__(), moshimesh.Ready)
    waiting = talk(small, 5, api_key="waits")
    assert await waiting.__anext__() == moshimesh.Queued(1, 0.0)
    with pytest.raises(moshimesh.MeshError) as caught:
        await talk(small, api_key="too late").__anext__()
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LINE_FULL")
    assert caught.value.retry_after_s
    await talking[0].aclose()
    rest = [event async for event in waiting]
    assert isinstance(rest[0], moshimesh.Ready)
    assert rest[-1] == moshimesh.Summary(5, 5, 0)
    await talking[1].aclose()


async def test_calls_of_one_key(small: NullMesh) -> None:
    first, second = talk(small, api_key="busy"), talk(small, api_key="busy")
    for events in (first, second):
        await events.__anext__()
    with pytest.raises(moshimesh.MeshError) as caught:
        await talk(small, api_key="busy").__anext__()
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    for events in (first, second):
        await events.aclose()

    async def may_call_again() -> bool:
        third = talk(small, 3, api_key="busy")
        try:
            return isinstance(await third.__anext__(), moshimesh.Ready | moshimesh.Queued)
        except moshimesh.MeshError as error:
            assert error.reason == "TOO_MANY_CALLS"
            return False
        finally:
            await third.aclose()

    await until(may_call_again, 10.0)  # sooner than a lost gateway's calls are forgotten


async def test_a_call_may_not_last_for_ever(small: NullMesh) -> None:
    handle = ""
    async with grpc.aio.insecure_channel(small.target) as channel:
        stub = conversation_pb2_grpc.ConversationServiceStub(channel)
        config = conversation_pb2.ConverseConfig(sample_rate_hertz=24_000, pacing=conversation_pb2.PACING_OFFLINE)
        call = stub.Converse(metadata=(("x-api-key", "long"),))
        await call.write(conversation_pb2.ConverseRequest(config=config))
        await call.write(conversation_pb2.ConverseRequest(audio=conversation_pb2.AudioChunk(pcm=bytes(1920 * 4))))
        while not handle:
            handle = (await asyncio.wait_for(call.read(), 20)).ready.resume_handle
        said, error = await ending(call)
        assert (error.code(), error_info(error).reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "CALL_TOO_LONG")
        assert said == "CALL_TOO_LONG"
    await small.restart("gateway")  # it writes what is left before it ends
    async with grpc.aio.insecure_channel(small.target) as channel:
        again = conversation_pb2_grpc.ConversationServiceStub(channel).Converse()
        config.resume_handle = handle
        await again.write(conversation_pb2.ConverseRequest(config=config))
        said, error = await ending(again)
        assert (error.code(), said) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_SESSION")
