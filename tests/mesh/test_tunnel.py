"""Many calls over one stream, against a real server whose service echoes what it gets."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import pytest
from moshimesh.codec.v1 import codec_pb2
from moshimesh.tunnel.v1 import tunnel_pb2

from services.gateway.peers.tunnel import Call, Method, Tunnel
from services.mesh.errors import REASON_KEY, MeshError, NoFreeSlot, PeerLost, PeerRefused
from services.mesh.incoming import Incoming, Sender
from services.mesh.outbox import ITEM_BYTES, ITEMS_PER_MESSAGE, Outbox
from services.mesh.serving import RunningStreams, Service, register
from services.mesh.transport import MAX_MESSAGE_BYTES
from services.mesh.tunnel import WAITING_REQUESTS, TunnelServer
from tests.until import until

DESCRIPTOR = codec_pb2.DESCRIPTOR.services_by_name["CodecService"]
ENCODE = Method(f"/{DESCRIPTOR.full_name}/Encode", codec_pb2.EncodeRequest, codec_pb2.EncodeResponse)
DECODE = Method(f"/{DESCRIPTOR.full_name}/Decode", codec_pb2.DecodeRequest, codec_pb2.DecodeResponse)


class Echo:
    """Encode answers each frame with its number as a code; Decode refuses in several ways."""

    def __init__(self, stall_s: float = 10.0) -> None:
        self.service = Service(DESCRIPTOR, {"GetInfo": self.get_info, "Encode": self.encode, "Decode": self.decode},
                               stall_s)
        self.answer_bytes = 0
        self.running = 0
        self.release = asyncio.Event()
        self.release.set()

    async def get_info(self, request: codec_pb2.GetInfoRequest, sender: Sender) -> codec_pb2.GetInfoResponse:
        return codec_pb2.GetInfoResponse()

    async def encode(self, requests: Incoming[codec_pb2.EncodeRequest]
                     ) -> AsyncGenerator[codec_pb2.EncodeResponse, None]:
        self.running += 1
        try:
            async for request in requests:
                await self.release.wait()
                answer = codec_pb2.EncodeResponse()
                answer.frame.codes.append(request.frame.context.sequence)
                answer.frame.context.traceparent = "x" * self.answer_bytes
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


@contextlib.asynccontextmanager
async def tunnelled(echo: Echo, **bounds: int) -> AsyncIterator[tuple[TunnelServer, Tunnel, grpc.aio.Channel]]:
    """A server whose tunnels have other bounds than usual."""
    tunnels = TunnelServer(echo.service, **bounds)
    server = grpc.aio.server()
    register(server, tunnels.service, RunningStreams())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield tunnels, Tunnel("echo", channel), channel
    await server.stop(0)


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


async def refused(call: Call[Any, Any]) -> tuple[grpc.StatusCode, str]:
    """How a call ends."""
    with pytest.raises(MeshError) as caught:
        async for _ in call:
            pass
    return caught.value.code, caught.value.reason


async def is_well(tunnel: Tunnel, call: Call[codec_pb2.EncodeRequest, codec_pb2.EncodeResponse]) -> None:
    """A neighbour goes on in the stream that it has."""
    stream = tunnel.stream
    call.send(frame(7))
    call.half_close()
    assert await numbers(call) == [7]
    assert tunnel.stream is stream and not stream.broken


async def test_a_call_that_overruns_its_limit_ends_alone(served) -> None:
    echo, _, tunnel, _ = served
    greedy, neighbour = tunnel.call(ENCODE), tunnel.call(ENCODE)
    echo.release.clear()
    for sequence in range(WAITING_REQUESTS + 5):
        greedy.send(frame(sequence))
    assert await refused(greedy) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_WAITING")
    echo.release.set()
    await is_well(tunnel, neighbour)
    assert echo.running == 0


async def test_bytes_that_wait_are_bounded_over_all_calls_and_counted_back() -> None:
    echo = Echo()
    async with tunnelled(echo, waiting_bytes=300_000) as (_, tunnel, _):
        echo.release.clear()
        first, second = tunnel.call(ENCODE), tunnel.call(ENCODE)
        for call in (first, first, first, second):  # the first one of each is with its handler
            call.send(large(100_000))
        second.send(large(150_000))
        assert await refused(second) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_WAITING")
        echo.release.set()
        for _ in range(3):
            await anext(first)
        third = tunnel.call(ENCODE)
        for _ in range(20):  # were those of the refused one still counted, there would be no room
            third.send(large(250_000))
            await anext(third)
        await is_well(tunnel, first)


def large(size: int) -> codec_pb2.EncodeRequest:
    request = frame(1)
    request.frame.pcm = bytes(size)
    return request


async def test_a_request_that_is_too_large_ends_its_own_call_at_either_end(served) -> None:
    echo, _, tunnel, _ = served
    neighbour, sender, server = tunnel.call(ENCODE), tunnel.call(ENCODE), tunnel.call(ENCODE)
    sender.send(large(ITEM_BYTES))
    assert await refused(sender) == (grpc.StatusCode.INVALID_ARGUMENT, "PAYLOAD_TOO_LARGE")
    server._outbox.put(tunnel_pb2.RequestItem(call=server._number, message=bytes(ITEM_BYTES + 1)))
    assert await refused(server) == (grpc.StatusCode.INVALID_ARGUMENT, "PAYLOAD_TOO_LARGE")
    neighbour.send(large(ITEM_BYTES - 100))
    await anext(neighbour)
    await is_well(tunnel, neighbour)
    assert echo.running == 0


async def test_a_request_that_can_not_be_parsed_ends_its_own_call(served) -> None:
    echo, _, tunnel, _ = served
    bad, neighbour = tunnel.call(ENCODE), tunnel.call(ENCODE)
    bad._outbox.put(tunnel_pb2.RequestItem(call=bad._number, message=b"\xff"))
    assert await refused(bad) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_MESSAGE")
    await is_well(tunnel, neighbour)
    assert echo.running == 0


async def test_an_answer_that_can_not_be_parsed_loses_its_own_call(served) -> None:
    echo, _, tunnel, _ = served
    bad, neighbour = tunnel.call(ENCODE), tunnel.call(ENCODE)
    bad.receive(tunnel_pb2.ResponseItem(call=bad._number, message=b"\xff"), "echo")
    assert await refused(bad) == (grpc.StatusCode.UNAVAILABLE, "PEER_LOST")
    await is_well(tunnel, neighbour)
    await until(lambda: echo.running == 0)


async def test_calls_in_one_tunnel_are_bounded() -> None:
    echo = Echo()
    async with tunnelled(echo, most_calls=3) as (_, tunnel, _):
        calls = [tunnel.call(ENCODE) for _ in range(3)]
        assert await refused(tunnel.call(ENCODE)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_FREE_SLOT")
        await is_well(tunnel, calls.pop())
        await is_well(tunnel, tunnel.call(ENCODE))


OPEN = tunnel_pb2.RequestItem(call=1, open=ENCODE.name)


@pytest.mark.parametrize("message", [
    b"\xff", tunnel_pb2.TunnelRequest(items=[tunnel_pb2.RequestItem(call=n, open=ENCODE.name)
                                             for n in range(2, ITEMS_PER_MESSAGE + 3)]).SerializeToString()],
    ids=["no message", "too many items"])
async def test_a_peer_that_breaks_the_contract_is_told_and_its_calls_end(message: bytes) -> None:
    echo = Echo()
    async with tunnelled(echo) as (_, tunnel, channel):
        neighbour = tunnel.call(ENCODE)
        raw = channel.stream_stream("/moshimesh.tunnel.v1.TunnelService/Tunnel")()
        await raw.write(tunnel_pb2.TunnelRequest(items=[OPEN]).SerializeToString())
        await until(lambda: echo.running == 2)
        await raw.write(message)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw.read()
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert dict(caught.value.trailing_metadata())[REASON_KEY] == "BAD_MESSAGE"
        await until(lambda: echo.running == 1)
        await is_well(tunnel, neighbour)


async def test_a_peer_that_does_not_read_loses_its_tunnel_instead_of_memory() -> None:
    echo = Echo(stall_s=1.0)
    async with tunnelled(echo, outbox_bytes=1_000_000) as (tunnels, tunnel, channel):
        raw = channel.stream_stream("/moshimesh.tunnel.v1.TunnelService/Tunnel")()
        await raw.write(tunnel_pb2.TunnelRequest(items=[
            OPEN, tunnel_pb2.RequestItem(call=1, message=large(100_000).SerializeToString())]).SerializeToString())
        await until(lambda: echo.running == 1)
        echo.answer_bytes = 200_000
        most = 0
        for _ in range(200):
            if not tunnels._tunnels:
                break
            await raw.write(tunnel_pb2.TunnelRequest(items=[tunnel_pb2.RequestItem(
                call=1, message=frame(1).SerializeToString())]).SerializeToString())
            for running in tunnels._tunnels:
                most = max(most, running.outbox._bytes)
            await asyncio.sleep(0.01)
        await until(lambda: echo.running == 0)
        assert 0 < most <= 1_200_000
        await is_well(tunnel, tunnel.call(ENCODE))


async def test_a_service_that_does_not_read_is_lost_before_it_costs_memory() -> None:
    async def silent(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
        "moshimesh.tunnel.v1.TunnelService", {"Tunnel": grpc.stream_stream_rpc_method_handler(silent)}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        tunnel = Tunnel("lm", channel, outbox_bytes=2_000_000)
        greedy, neighbour = tunnel.call(ENCODE), tunnel.call(ENCODE)
        first = tunnel.stream
        for _ in range(100):
            greedy.send(large(100_000))
            await asyncio.sleep(0)
        for call in (greedy, neighbour):
            assert await refused(call) == (grpc.StatusCode.UNAVAILABLE, "PEER_LOST")
        assert first.broken
        tunnel.call(ENCODE).cancel()
        assert tunnel.stream is not first
    await server.stop(0)


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL,
                                  grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE])
async def test_a_tunnel_that_breaks_is_a_lost_peer_to_every_call(code: grpc.StatusCode) -> None:
    async def broken(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        await anext(requests)
        await context.abort(code, "as gRPC ends a stream")
        yield b""

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
        "moshimesh.tunnel.v1.TunnelService", {"Tunnel": grpc.stream_stream_rpc_method_handler(broken)}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        tunnel = Tunnel("lm", channel)
        for call in [tunnel.call(ENCODE) for _ in range(3)]:
            assert await refused(call) == (grpc.StatusCode.UNAVAILABLE, "PEER_LOST")
    await server.stop(0)


async def test_many_items_are_sent_in_messages_that_a_peer_takes() -> None:
    outbox: Outbox[tunnel_pb2.RequestItem] = Outbox(10_000_000)
    for _ in range(3 * ITEMS_PER_MESSAGE):
        outbox.put(tunnel_pb2.RequestItem(call=1, message=b"x"))
    outbox.put(tunnel_pb2.RequestItem(call=1, message=bytes(ITEM_BYTES)))
    outbox.put(tunnel_pb2.RequestItem(call=1, message=bytes(ITEM_BYTES)))
    messages = list(await outbox.take())
    assert [len(message) for message in messages] == [ITEMS_PER_MESSAGE] * 3 + [1, 1]
    assert max(tunnel_pb2.TunnelRequest(items=items).ByteSize() for items in messages) < MAX_MESSAGE_BYTES


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
    # Nobody is left that waits for something to send.
    await until(lambda: not any("_requests" in str(task) or "_consume_request" in str(task)
                                for task in asyncio.all_tasks()))
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
        def Tunnel(self, requests: object) -> Stub:
            return self

        def cancel(self) -> None:
            pass

        async def __aiter__(self) -> AsyncIterator[tunnel_pb2.TunnelResponse]:
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
        await until(lambda: stream._heard == clock[0])
    # It was heard at 103 s: what it was asked for at 100 and 101 s has been sent, unlike that of 102 s.
    responses.put_nowait(None)
    with pytest.raises(PeerLost):
        await anext(call)
    assert lost == [2]
    stream.keep(tunnel_pb2.Keep(sequence=3), functools.partial(lost.append, 3))
    assert lost == [2, 3]
