"""Peers of `/api/chat` that are slow, silent or rude: a clear end, the slot back within a second, no harm to others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from harness.chat_clients import Ear, hold
from services.gateway.edges.web import socket as sockets_module
from services.gateway.edges.web.chat.edge import ChatEdge
from services.gateway.edges.web.connection import PLAIN_BYTES, READ_AHEAD_BYTES, Connections
from services.gateway.edges.web.socket import MOST_MESSAGE_BYTES
from tests.gateway.door import Gateway, codec, lm
from tests.gateway.edges.sounds import speech
from tests.gateway.edges.test_ogg import HEAD, page
from tests.gateway.edges.web.echo import FRAME, RATE
from tests.gateway.edges.web.test_chat import Everybody, heard, pages
from tests.gateway.web_door import WebDoor
from tests.until import until

SLOTS = 2
BACK_S = 1.0


class Raw:
    """A TCP connection to a door."""

    def __init__(self, door: WebDoor) -> None:
        self._port = int(door.url.rpartition(":")[2])

    async def __aenter__(self) -> Raw:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def upgrade(self) -> None:
        """Become a WebSocket, and read the handshake of the call."""
        self.writer.write(b"GET /api/chat HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
        assert b"101" in await self.reader.readuntil(b"\r\n\r\n")
        assert await self.reader.readexactly(3) == b"\x82\x01\x00"

    def frame(self, payload: bytes, length: int | None = None) -> None:
        """Send a binary message, which may claim another length than it has."""
        length = len(payload) if length is None else length
        head = bytes([0x82, 0x80 | length]) if length < 126 else b"\x82\xff" + struct.pack(">Q", length)
        self.writer.write(head + bytes(4) + payload)


@pytest.fixture(scope="module")
async def gateway() -> AsyncIterator[Gateway]:
    async with Gateway([codec("mimi", SLOTS)], [lm("one", "mimi", SLOTS)]) as gateway:
        yield gateway


@pytest.fixture
async def door(gateway: Gateway) -> AsyncIterator[WebDoor]:
    async with WebDoor(lambda sockets: ChatEdge(gateway.desk, Everybody(), sockets).routes, stall_s=0.5) as door:
        yield door
    assert await slots_free(gateway, SLOTS)


async def slots_free(gateway: Gateway, slots: int) -> float:
    """Wait until so many are; for how many seconds that took, at least a bit."""
    clock = asyncio.get_running_loop().time
    began = clock()
    while (await gateway.desk.info()).slots_free < slots:
        assert clock() - began < 5, f"{slots} slots should be free"
        await asyncio.sleep(0.02)
    return clock() - began + 1e-6


@contextlib.asynccontextmanager
async def neighbour(door: WebDoor, gateway: Gateway) -> AsyncIterator[None]:
    """A call beside, which must get every answer."""
    call = asyncio.create_task(hold(door.url, speech(RATE, 1.6), quiet_s=0.5))
    await slots_taken(gateway, 1)
    yield
    held = await call
    assert not held.error and len(held.audio) >= 19 * FRAME  # one frame is in the model's delay line


async def slots_taken(gateway: Gateway, slots: int) -> None:
    async def taken() -> bool:
        return (await gateway.desk.info()).slots_free <= SLOTS - slots

    await until(taken)


async def test_garbage_is_an_error_and_the_slot_is_back(door: WebDoor, gateway: Gateway) -> None:
    async with neighbour(door, gateway):
        for garbage in (b"garbage" * 100, bytes(50_000), pages(speech(RATE, 0.08))[0][1:-1] + b"\0"):
            async with door.connect("/api/chat") as socket:
                assert await socket.receive_bytes() == b"\x00"
                await socket.send_bytes(b"\x01" + garbage)
                held = await heard(socket, 1, open=True)
                assert "BAD_OPUS" in held.error and held.close_code == 1008
                assert await slots_free(gateway, 1) < BACK_S


async def test_a_gigabyte_is_not_kept_and_ends_the_call_with_its_reason(door: WebDoor, gateway: Gateway) -> None:
    async with neighbour(door, gateway), Raw(door) as raw:
        await raw.upgrade()
        raw.frame(b"\x01", 1 << 30)
        sent = 0
        while sent < 2 * (MOST_MESSAGE_BYTES + READ_AHEAD_BYTES):
            raw.writer.write(bytes(1 << 16))
            sent += 1 << 16
            await asyncio.sleep(0)
        assert (await raw.reader.readexactly(4)) == b"\x88\x19" + (1009).to_bytes(2, "big")
        assert await raw.reader.readexactly(23) == b"the message is too long"
        assert await slots_free(gateway, 1) < BACK_S


async def test_a_message_that_is_a_bit_too_long_ends_the_call_with_its_reason(door: WebDoor, gateway: Gateway) -> None:
    async with door.connect("/api/chat") as socket:
        await socket.receive_bytes()
        await socket.send_bytes(bytes(MOST_MESSAGE_BYTES + 1))
        held = await heard(socket, 1, open=True)
        assert held.close_code == 1009 and await slots_free(gateway, SLOTS) < BACK_S


@pytest.mark.parametrize("how", ["in the middle of a frame", "with a close frame", "by a half-close", "by a reset"])
async def test_a_caller_that_leaves_gives_its_slot_back(door: WebDoor, gateway: Gateway, how: str) -> None:
    async with neighbour(door, gateway), Raw(door) as raw:
        await raw.upgrade()
        raw.frame(pages(speech(RATE, 0.08))[0])
        await slots_taken(gateway, 2)
        if how == "in the middle of a frame":
            raw.frame(b"\x01half", 500)
            raw.writer.close()
        elif how == "with a close frame":
            raw.writer.write(b"\x88\x82" + bytes(4) + (1000).to_bytes(2, "big"))
        elif how == "by a half-close":
            raw.writer.write_eof()
        else:
            raw.writer.transport.abort()
        assert await slots_free(gateway, 1) < BACK_S
        if how in ("with a close frame", "by a half-close"):
            answered = await asyncio.wait_for(raw.reader.read(-1), BACK_S)  # moshi.client waits for this to end
            assert answered.endswith(b"\x88\x02\x03\xe8") == (how == "with a close frame")


async def test_a_caller_that_vanishes_is_noticed_by_its_silence_to_pings(
        door: WebDoor, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets_module, "PING_S", 1.0)
    async with Raw(door) as raw:
        await raw.upgrade()  # and it never says anything again
        with contextlib.suppress(ConnectionError):
            assert b"\x89\x00" in await asyncio.wait_for(raw.reader.read(-1), 20)
        assert await slots_free(gateway, SLOTS) < BACK_S


async def test_who_reads_no_answers_is_told_so_and_loses_the_slot(
        door: WebDoor, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets_module, "PROBE_S", 0.1)
    async with neighbour(door, gateway), Raw(door) as raw:
        await raw.upgrade()  # all answers of this call fit into the kernel's buffers
        for message in pages(speech(RATE, 3.0)):
            raw.frame(message)
            await asyncio.sleep(0.08)
            if (await gateway.desk.info()).slots_free:
                break
        assert await slots_free(gateway, 1) < BACK_S
        assert b"SLOW_CALLER" in await raw.reader.read(-1)


async def test_who_sends_faster_than_speech_is_not_taken_for_slow(
        door: WebDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets_module, "PROBE_S", 0.1)
    async with door.connect("/api/chat") as socket:
        for message in pages(np.zeros(RATE * 50, np.float32)):  # more than the desk takes at once
            await socket.send_bytes(message)
        with pytest.raises(asyncio.TimeoutError):  # and no close
            while (answer := await socket.receive(2.0)).type is aiohttp.WSMsgType.BINARY:
                assert answer.data[0] in (0, 1)


async def test_in_the_line_there_is_no_message_until_there_is_a_slot(door: WebDoor, gateway: Gateway) -> None:
    async with contextlib.AsyncExitStack() as held:
        holders = [await held.enter_async_context(door.connect("/api/chat")) for _ in range(SLOTS)]
        for holder in holders:
            assert await holder.receive_bytes() == b"\x00"
        said, line = pages(speech(RATE, 4.0)), gateway.desk._resources.line
        async with door.connect("/api/chat", autoping=False) as gone:
            await all_read(gone, said[:3])
            await until(lambda: line.waiting)
        await until(lambda: not line.waiting)  # its place is given back, too
        async with door.connect("/api/chat", autoping=False) as waiting:
            await all_read(waiting, said[:30])  # all but the last of it is old when there is a slot
            await until(lambda: line.waiting)
            await holders[0].close()
            assert (await told(waiting)) == b"\x00"
            for message in said[30:40]:
                await waiting.send_bytes(message)
                await asyncio.sleep(0.08)
            ear = Ear("python")
            ear.open = True
            with pytest.raises(asyncio.TimeoutError):
                while True:
                    ear.hear(await told(waiting))
            assert ear.samples < 12 * FRAME  # 2 of those in the line, and one is in the delay line


async def all_read(socket: aiohttp.ClientWebSocketResponse, messages: list[bytes]) -> None:
    """Send all of it, and wait until the door has read it and has said nothing."""
    for message in messages:
        await socket.send_bytes(message)
    await socket.ping(b"read?")
    answer = await socket.receive(20.0)
    assert answer.type is aiohttp.WSMsgType.PONG


async def told(socket: aiohttp.ClientWebSocketResponse) -> bytes:
    """The next message, on a socket that answers no pings by itself. Raises asyncio.TimeoutError."""
    while (message := await socket.receive(5.0)).type is aiohttp.WSMsgType.PING:
        await socket.pong(message.data)
    assert message.type is aiohttp.WSMsgType.BINARY, message
    return bytes(message.data)


async def test_garbage_in_the_line_is_an_error_at_once(door: WebDoor) -> None:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(SLOTS):
            await (await held.enter_async_context(door.connect("/api/chat"))).receive_bytes()
        async with door.connect("/api/chat") as waiting:
            await waiting.send_bytes(b"\x01garbage")
            assert "BAD_OPUS" in (await heard(waiting, 1)).error


async def test_a_flood_of_small_messages_is_an_error(door: WebDoor, gateway: Gateway) -> None:
    async with neighbour(door, gateway), Raw(door) as raw:
        await raw.upgrade()
        raw.writer.write(b"\x82\x80\0\0\0\0" * 20_000)
        assert b"TOO_MANY_MESSAGES" in await raw.reader.read(200)
        assert await slots_free(gateway, 1) < BACK_S


async def test_packets_that_stand_for_hours_of_sound_are_an_error(door: WebDoor, gateway: Gateway) -> None:
    minutes = page(*[b"\x18"] * 255) * 100  # packets of a byte, each 60 ms long
    async with neighbour(door, gateway), door.connect("/api/chat") as socket:
        await socket.receive_bytes()
        await socket.send_bytes(b"\x01" + page(HEAD, flags=2))
        for _ in range(5):
            await socket.send_bytes(b"\x01" + minutes)
        held = await heard(socket, RATE * 3600, open=True)
        assert "TOO_MUCH_AUDIO" in held.error and held.close_code == 1008
        assert await slots_free(gateway, 1) < BACK_S


@pytest.mark.parametrize("dripped", [b"", b"GET /api/chat HT", b"GET / HTTP/1.1\r\nHost: here\r\nX-",
                                     b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nhalf"])
async def test_requests_that_never_end_are_cut_off(gateway: Gateway, dripped: bytes) -> None:
    connections = Connections(request_s=0.4)
    async with WebDoor(lambda sockets: ChatEdge(gateway.desk, Everybody(), sockets).routes,
                       connections=connections) as door, Raw(door) as raw:
        raw.writer.write(dripped)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                raw.writer.write(b"x")
                await asyncio.sleep(0.01)
        with contextlib.suppress(ConnectionError):
            assert b"101" not in await asyncio.wait_for(raw.reader.read(-1), 5)
        await until(lambda: not connections.by_address)


async def test_requests_that_are_sent_ahead_are_answered_if_they_are_few_and_not_kept_if_they_are_many(
        door: WebDoor) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"
    async with Raw(door) as raw:
        raw.writer.write(8 * request)
        for _ in range(8):
            assert b"200" in await raw.reader.readuntil(b"\r\n\r\nok\n")
    for ahead in (request, b"POST /api/tickets HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n"):
        async with Raw(door) as raw:
            answered = b""
            with contextlib.suppress(ConnectionError):
                raw.writer.write(10_000 * ahead)
                answered = await asyncio.wait_for(raw.reader.read(-1), 20.0)
            assert answered.count(b"HTTP/1.1") < 5000


async def test_what_comes_before_a_request_is_answered_is_bounded(gateway: Gateway) -> None:
    answering = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await answering.wait()
        return web.Response()

    async with WebDoor(lambda sockets: [web.get("/slow", slow)]) as door, Raw(door) as raw:
        raw.writer.write(b"GET /slow HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            raw.writer.write(bytes(4 * PLAIN_BYTES))
            assert await asyncio.wait_for(raw.reader.read(-1), 20.0) == b""
        answering.set()


async def test_a_call_lasts_longer_than_a_request_may(gateway: Gateway) -> None:
    async with WebDoor(lambda sockets: ChatEdge(gateway.desk, Everybody(), sockets).routes,
                       connections=Connections(request_s=0.3)) as door:
        assert len((await hold(door.url, speech(RATE, 0.8), quiet_s=0.5)).audio) >= 9 * FRAME


async def test_one_address_has_only_so_many_connections_and_sockets(gateway: Gateway) -> None:
    connections = Connections(most_per_address=3)
    async with WebDoor(lambda sockets: ChatEdge(gateway.desk, Everybody(), sockets).routes, most_per_address=1,
                       connections=connections) as door, door.connect("/api/chat"):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
            await hold(door.url, speech(RATE, 0.08))
        async with Raw(door), Raw(door) as raw:
            await until(lambda: connections.by_address["127.0.0.1"] <= 3)
            raw.writer.write(os.urandom(10))
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(raw.reader.read(-1), 5)


async def test_bytes_that_are_no_http_leave_one_line_without_them(door: WebDoor, caplog: pytest.LogCaptureFixture
                                                                 ) -> None:
    for _ in range(20):
        async with Raw(door) as raw:
            raw.writer.write(b"GET ?key=mm_secret HTTP/1.1\r\n\r\n")
            assert b"400" in await raw.reader.readline()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert len(caplog.records) <= 1 and "mm_secret" not in caplog.text
