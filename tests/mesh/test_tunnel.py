"""Many calls over one stream, against a real server whose service echoes what it gets."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator

import grpc
import pytest
from moshimesh.codec.v1 import codec_pb2
from moshimesh.tunnel.v1 import tunnel_pb2

from services.gateway.peers.tunnel import Call, Method, Tunnel
from services.mesh.errors import MeshError, NoFreeSlot, PeerLost, PeerRefused
from services.mesh.incoming import Incoming
from services.mesh.serving import RunningStreams, Service, register
from services.mesh.tunnel import WAITING_REQUESTS, TunnelServer

DESCRIPTOR = codec_pb2.DESCRIPTOR.services_by_name["CodecService"]
ENCODE = Method(f"/{DESCRIPTOR.full_name}/Encode", codec_pb2.EncodeRequest, codec_pb2.EncodeResponse)
DECODE = Method(f"/{DESCRIPTOR.full_name}/Decode", codec_pb2.DecodeRequest, codec_pb2.DecodeResponse)


class Echo:
    """Encode answers each frame with its number as a code; Decode refuses in several ways."""

    def __init__(self) -> None:
        self.service = Service(DESCRIPTOR, {"GetInfo": self.get_info, "Encode": self.encode, "Decode": self.decode},
                               stall_s=10.0)
        self.running = 0
        self.release = asyncio.Event()
        self.release.set()

    async def get_info(self, request: codec_pb2.GetInfoRequest) -> codec_pb2.GetInfoResponse:
        return codec_pb2.GetInfoResponse()

    async def encode(self, requests: Incoming[codec_pb2.EncodeRequest]
                     ) -> AsyncGenerator[codec_pb2.EncodeResponse, None]:
        self.running += 1
        try:
            async for request in requests:
                await self.release.wait()
                answer = codec_pb2.EncodeResponse()
                answer.frame.codes.append(request.frame.context.sequence)
                yield answer
        finally:
            self.running -= 1

    async def decode(self, requests: Incoming[codec_pb2.DecodeRequest]
                     ) -> AsyncGenerator[codec_pb2.DecodeResponse, None]:
        async for request in requests:
            if request.config.session_id == "full":
                raise NoFreeSlot("no room", slots=3)
            raise ZeroDivisionError("a bug")
        yield codec_pb2.DecodeResponse()


@pytest.fixture
async def served() -> AsyncIterator[tuple[Echo, TunnelServer, Tunnel, grpc.aio.Server]]:
    echo = Echo()
    tunnels = TunnelServer(echo.service)
    server = grpc.aio.server()
    register(server, tunnels.service, RunningStreams())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield echo, tunnels, Tunnel("echo", channel), server
    await server.stop(0)


def frame(sequence: int) -> codec_pb2.EncodeRequest:
    request = codec_pb2.EncodeRequest()
    request.frame.context.sequence = sequence
    return request


async def numbers(call: Call[codec_pb2.EncodeRequest, codec_pb2.EncodeResponse]) -> list[int]:
    return [response.frame.codes[0] async for response in call]


async def test_calls_do_not_mix_and_end_on_their_own(served) -> None:
    echo, _, tunnel, _ = served
    calls = [tunnel.call(ENCODE) for _ in range(20)]
    for sequence in range(5):
        for index, call in enumerate(calls):
            call.send(frame(100 * index + sequence))
    for call in calls:
        call.half_close()
    answers = await asyncio.gather(*(numbers(call) for call in calls))
    assert answers == [[100 * index + sequence for sequence in range(5)] for index in range(20)]
    assert echo.running == 0


async def test_errors_keep_their_code_reason_and_details(served) -> None:
    _, _, tunnel, _ = served
    full, bug, unknown = tunnel.call(DECODE), tunnel.call(DECODE), tunnel.call(
        Method("/no.such/Method", codec_pb2.DecodeRequest, codec_pb2.DecodeResponse))
    full.send(codec_pb2.DecodeRequest(config=codec_pb2.DecodeConfig(session_id="full")))
    bug.send(codec_pb2.DecodeRequest())
    for call, code, reason in ((full, grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_FREE_SLOT"),
                               (bug, grpc.StatusCode.INTERNAL, "INTERNAL"),
                               (unknown, grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_METHOD")):
        with pytest.raises(PeerRefused) as caught:
            await anext(call)
        assert (caught.value.code, caught.value.reason) == (code, reason)
        if call is full:
            assert (caught.value.metadata, caught.value.retry_after_s) == ({"slots": "3"}, 1.0)


async def test_a_cancelled_call_ends_at_the_service(served) -> None:
    echo, _, tunnel, _ = served
    call, neighbour = tunnel.call(ENCODE), tunnel.call(ENCODE)
    call.send(frame(1))
    assert (await anext(call)).frame.codes == [1]
    assert echo.running == 2
    call.cancel()
    neighbour.send(frame(2))
    neighbour.half_close()
    assert await numbers(neighbour) == [2]
    assert echo.running == 0


async def test_a_peer_that_overruns_its_limit_loses_that_call_only(served) -> None:
    echo, _, tunnel, _ = served
    greedy, neighbour = tunnel.call(ENCODE), tunnel.call(ENCODE)
    echo.release.clear()
    for sequence in range(WAITING_REQUESTS + 5):
        greedy.send(frame(sequence))
    with pytest.raises(MeshError):
        await numbers(greedy)
    echo.release.set()
    neighbour.send(frame(7))
    neighbour.half_close()
    assert await numbers(neighbour) == [7]


async def test_what_came_before_somebody_listens_is_handed_over_first(served) -> None:
    _, _, tunnel, server = served
    call = tunnel.call(ENCODE)
    call.send(frame(1))
    await asyncio.sleep(0.2)
    heard: asyncio.Queue = asyncio.Queue()
    call.deliver_to(heard.put_nowait)
    assert heard.get_nowait().frame.codes == [1]
    call.send(frame(2))
    assert (await heard.get()).frame.codes == [2]
    await server.stop(0)
    assert isinstance(await heard.get(), MeshError)


async def test_a_draining_service_ends_the_tunnel_with_its_last_call(served) -> None:
    _, tunnels, tunnel, server = served
    call = tunnel.call(ENCODE)
    call.send(frame(1))
    responses = call
    await anext(responses)
    tunnels.drain()
    stopping = asyncio.create_task(server.stop(30))
    call.send(frame(2))
    assert (await anext(responses)).frame.codes == [2]
    call.half_close()
    assert [response async for response in responses] == []
    await asyncio.wait_for(stopping, 2)  # not the 30 s that it may take


async def test_a_lost_service_is_told_to_every_call(served) -> None:
    _, _, tunnel, server = served
    calls = [tunnel.call(ENCODE) for _ in range(3)]
    calls[0].send(frame(1))
    await anext(calls[0])
    await server.stop(0)
    for call in calls:
        with pytest.raises(PeerLost, match="echo"):
            await numbers(call)
    with pytest.raises(PeerLost):
        await numbers(tunnel.call(ENCODE))


async def test_what_is_to_be_kept_arrives_soon_and_not_at_a_service_that_drains(served) -> None:
    _, tunnels, tunnel, _ = served
    kept: asyncio.Queue[int] = asyncio.Queue()
    lost: list[int] = []
    tunnels.keep = lambda keep: kept.put_nowait(keep.sequence)

    def keep(sequence: int) -> None:
        tunnel.stream.keep(tunnel_pb2.Keep(sequence=sequence), lambda: lost.append(sequence))

    assert tunnel.stream is None  # nobody is there yet
    call = tunnel.call(ENCODE)
    call.send(frame(1))
    await anext(call)
    keep(2)
    call.send(frame(2))  # takes it along
    await anext(call)
    assert kept.get_nowait() == 2
    keep(3)  # with nothing else to send, it goes alone
    assert await asyncio.wait_for(kept.get(), 10) == 3
    told = asyncio.Event()
    call.on_draining = told.set
    tunnels.drain()
    await asyncio.wait_for(told.wait(), 2)
    keep(4)
    assert kept.empty() and lost == [4]


async def test_what_a_lost_service_can_not_have_sent_is_heard_of() -> None:
    """A service sends its spans once a second: what it was asked for just before it was killed, it takes with it."""
    responses: asyncio.Queue[tunnel_pb2.TunnelResponse | None] = asyncio.Queue()

    class Stub:
        async def Tunnel(self, requests: object) -> AsyncIterator[tunnel_pb2.TunnelResponse]:
            while (response := await responses.get()) is not None:
                yield response
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())

    tunnel = Tunnel("lm", grpc.aio.insecure_channel("127.0.0.1:9"))
    tunnel._stub = Stub()  # type: ignore[assignment]
    call = tunnel.call(ENCODE)
    stream, clock, lost = tunnel.stream, [100.0], []
    assert stream is not None
    stream._now = lambda: clock[0]  # type: ignore[method-assign, assignment]
    for sequence in range(3):
        stream.keep(tunnel_pb2.Keep(sequence=sequence), functools.partial(lost.append, sequence))
        clock[0] += 1.0
        responses.put_nowait(tunnel_pb2.TunnelResponse())
        while not responses.empty():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    # It was heard at 103 s: what it was asked for at 100 and 101 s has been sent, unlike that of 102 s.
    responses.put_nowait(None)
    with pytest.raises(PeerLost):
        await anext(call)
    assert lost == [2]
    stream.keep(tunnel_pb2.Keep(sequence=3), functools.partial(lost.append, 3))
    assert lost == [2, 3]
