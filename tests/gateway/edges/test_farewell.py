"""The reason of an end comes in-band, and the caller may half-close before the status comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import grpc
import pytest
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.gateway.v1 import conversation_pb2_grpc

from services.gateway.edges.farewell import AHEAD, FAREWELL_REQUESTS, Requests, ended, with_farewell
from services.mesh.errors import InvalidRequest, MeshError, NoFreeSlot
from services.mesh.incoming import Incoming
from services.mesh.serving import Service
from tests.served import Served

AUDIO = pb.ConverseRequest(audio=pb.AudioChunk(pcm=bytes(3840)))
BAD = InvalidRequest("BAD_PCM", "an odd byte", field="audio.pcm")


class Edge:
    """Fails at the third piece of audio, while the caller goes on writing."""

    def __init__(self, failure: Exception, farewell_s: float) -> None:
        self._failure, self._farewell_s = failure, farewell_s
        descriptor = pb.DESCRIPTOR.services_by_name["ConversationService"]
        handlers = {method.name: self.converse if method.name == "Converse" else self.unary
                    for method in descriptor.methods}
        self.services = (Service(descriptor, handlers, 10.0),)

    async def unary(self, request: object) -> pb.GetInfoResponse:
        return pb.GetInfoResponse()

    async def converse(self, incoming: Incoming[pb.ConverseRequest]) -> AsyncGenerator[pb.ConverseResponse, None]:
        async with Requests(incoming) as requests:
            async for response in with_farewell(self._hold(requests), requests, "Converse", self._farewell_s):
                yield response

    async def _hold(self, requests: Requests) -> AsyncGenerator[pb.ConverseResponse, None]:
        async def read() -> None:
            for _ in range(3):
                await anext(requests)
            failed.set()
            await anext(requests)
            await asyncio.sleep(60)

        failed = asyncio.Event()
        reading = asyncio.create_task(read())
        yield pb.ConverseResponse(ready=pb.ConverseReady())
        try:
            await asyncio.wait((asyncio.create_task(failed.wait()), reading), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            raise self._failure
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def drain(self) -> None: ...

    async def close(self) -> None: ...


def served(failure: Exception, farewell_s: float) -> Served:
    return Served("gateway", Edge(failure, farewell_s), conversation_pb2_grpc.ConversationServiceStub)


async def write_until(call: grpc.aio.StreamStreamCall, stop: Callable[[], bool]) -> None:
    while not stop():
        await call.write(AUDIO)
        await asyncio.sleep(0.001)
    await call.done_writing()


async def test_a_caller_who_half_closes_at_the_reason_gets_the_status_at_once() -> None:
    async with served(BAD, farewell_s=60.0) as gateway:
        call = gateway.stub.Converse()
        reasons: list[pb.CallEnded] = []
        writing = asyncio.create_task(write_until(call, lambda: bool(reasons)))
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while (response := await call.read()) is not grpc.aio.EOF:
                if response.HasField("ended"):
                    reasons.append(response.ended)
        await writing
    assert time.monotonic() - began < 30
    assert reasons == [pb.CallEnded(code=3, reason="BAD_PCM", message="an odd byte", metadata={"field": "audio.pcm"})]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(caught.value.trailing_metadata())["moshimesh-reason"] == "BAD_PCM"


async def test_a_caller_who_ignores_the_reason_gets_the_status_after_a_moment() -> None:
    async with served(BAD, farewell_s=0.05) as gateway:
        call = gateway.stub.Converse()
        for _ in range(3):
            await call.write(AUDIO)
        kinds = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while (response := await call.read()) is not grpc.aio.EOF:
                kinds.append(response.WhichOneof("response"))
    assert kinds == ["ready", "ended"]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_bug_of_ours_is_said_as_such() -> None:
    async with served(ZeroDivisionError("secret"), farewell_s=0.05) as gateway:
        call = gateway.stub.Converse()
        for _ in range(3):
            await call.write(AUDIO)
        await call.read()
        said = (await call.read()).ended
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert (said.code, said.reason) == (13, "INTERNAL")
    assert "secret" not in said.message
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_message_that_can_not_be_parsed_is_named_to_a_caller_who_goes_on_writing() -> None:
    async with served(BAD, farewell_s=60.0) as gateway:
        call = gateway.channel.stream_stream(
            "/moshimesh.gateway.v1.ConversationService/Converse",
            response_deserializer=pb.ConverseResponse.FromString)()
        for data in (AUDIO.SerializeToString(), b"\xff", b"\xff", AUDIO.SerializeToString()):
            await call.write(data)
        assert (await call.read()).HasField("ready")
        assert (await call.read()).ended.reason == "BAD_MESSAGE"
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert dict(caught.value.trailing_metadata())["moshimesh-reason"] == "BAD_MESSAGE"


async def test_requests_are_not_read_far_ahead() -> None:
    taken = 0

    async def source() -> AsyncIterator[pb.ConverseRequest]:
        nonlocal taken
        while True:
            taken += 1
            yield AUDIO

    async with Requests(source()) as requests:
        for read in range(5):
            for _ in range(20):
                await asyncio.sleep(0)
            assert taken <= read + AHEAD + 1  # and the one that waits for room
            await anext(requests)


async def test_what_the_requests_raise_reaches_their_reader() -> None:
    async def source() -> AsyncIterator[pb.ConverseRequest]:
        yield AUDIO
        raise OSError("gone")

    async with Requests(source()) as requests:
        assert await anext(requests) == AUDIO
        with pytest.raises(OSError, match="gone"):
            await anext(requests)


def test_when_to_try_again_is_said_where_it_helps() -> None:
    assert ended(NoFreeSlot("full")).retry_after_ms == 1000
    assert not ended(BAD).HasField("retry_after_ms")
    assert ended(MeshError("bug")).code == 13


class Garbage:
    """A caller who never stops sending what is no message; counts what was read of it."""

    def __init__(self) -> None:
        self.read = 0

    def __aiter__(self) -> Garbage:
        return self

    async def __anext__(self) -> pb.ConverseRequest:
        self.read += 1
        await asyncio.sleep(0)
        raise BAD


async def test_nobody_reads_on_and_on_what_can_not_be_parsed() -> None:
    garbage = Garbage()
    async with Requests(garbage) as requests:
        for _ in range(FAREWELL_REQUESTS):  # a call that waits in line does not ask for its audio yet
            await asyncio.sleep(0)
        assert garbage.read == 1
        with pytest.raises(InvalidRequest):
            await anext(requests)
        await requests.half_closed(within_s=0.5)
    assert garbage.read == FAREWELL_REQUESTS
