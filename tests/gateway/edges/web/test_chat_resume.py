"""Calls of `/api/chat` that are cut off, at a real desk: who can resume does, and a gateway that stops says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from harness.chat_clients import AUDIO, ERROR, HANDSHAKE, METADATA
from services.gateway.edges.web.chat.edge import ChatEdge
from tests.gateway.door import Gateway, codec, lm
from tests.gateway.edges.sounds import speech
from tests.gateway.edges.web.echo import RATE
from tests.gateway.edges.web.test_chat import Everybody, pages
from tests.gateway.web_door import WebDoor


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with Gateway([codec("mimi", 1)], [lm("one", "mimi", 1)]) as gateway:
        yield gateway


@pytest.fixture
async def door(gateway: Gateway) -> AsyncIterator[WebDoor]:
    async with WebDoor(lambda sockets: ChatEdge(gateway.desk, Everybody(), sockets).routes) as door:
        yield door


async def next_of(socket: aiohttp.ClientWebSocketResponse, kind: int) -> bytes:
    """The next message of this kind, without it."""
    while (message := await socket.receive_bytes(timeout=10))[0] != kind:
        pass
    return message[1:]


async def told(socket: aiohttp.ClientWebSocketResponse, name: str) -> Any:
    """What the next metadata with this name says."""
    while name not in (metadata := json.loads(await next_of(socket, METADATA))):
        pass
    return metadata[name]


async def test_a_call_that_was_cut_off_goes_on(door: WebDoor) -> None:
    said = pages(speech(RATE, 1.6))
    async with door.connect("/api/chat?resume=1") as socket:
        handle = await told(socket, "resume_handle")
        for page in said[:10]:
            await socket.send_bytes(page)
        for _ in range(9):
            await next_of(socket, AUDIO)
    async with door.connect("/api/chat?resume=again") as socket:
        await socket.send_bytes(bytes([METADATA]) + json.dumps(
            {"resume_handle": handle, "first_sequence": 10}).encode())
        assert await told(socket, "next_sequence") == 10
        assert await next_of(socket, HANDSHAKE) == b""
        for page in [said[0], *said[10:]]:  # a new stream: it begins with its headers
            await socket.send_bytes(page)
        for _ in range(10):
            await next_of(socket, AUDIO)


async def test_a_handle_that_nobody_has_is_refused(door: WebDoor) -> None:
    async with door.connect("/api/chat?resume=again") as socket:
        await socket.send_bytes(b'\x04{"resume_handle": "made up", "first_sequence": 0}')
        assert b"UNKNOWN_SESSION" in await next_of(socket, ERROR)
        await socket.receive()
        assert socket.close_code == 1008


async def test_a_gateway_that_stops_says_so_to_who_can_resume_and_why_to_all(gateway: Gateway, door: WebDoor) -> None:
    async with door.connect("/api/chat?resume=1") as socket:
        await next_of(socket, HANDSHAKE)
        gateway.desk.drain()
        assert await told(socket, "go_away_ms") == 1000
        assert b"DRAINING" in await asyncio.wait_for(next_of(socket, ERROR), 5)
        await socket.receive()
        assert socket.close_code == 1012
