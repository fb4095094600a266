"""Headers of a handshake that are not what they should be: a refusal, and nothing of them in the log."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest

from services.gateway.edges.web.chat.edge import ChatEdge
from services.gateway.edges.web.pcm.edge import PcmEdge
from services.gateway.trust.gate import OpenGate
from tests.gateway.door import Gateway, codec, lm
from tests.gateway.edges.web.test_rude import Raw
from tests.gateway.web_door import WebDoor

HEADERS = {"Host": b"here", "Upgrade": b"websocket", "Connection": b"Upgrade", "Sec-WebSocket-Version": b"13",
           "Sec-WebSocket-Key": b"AAAAAAAAAAAAAAAAAAAAAA=="}


@pytest.fixture(scope="module")
async def door() -> AsyncIterator[WebDoor]:
    async with Gateway([codec("mimi", 2)], [lm("one", "mimi", 2)]) as gateway, WebDoor(lambda sockets: [
            *ChatEdge(gateway.desk, OpenGate(), sockets).routes,
            *PcmEdge(gateway.desk, OpenGate(), sockets).routes]) as door:
        yield door


async def status(door: WebDoor, path: str, headers: dict[str, bytes]) -> int:
    """What a request with these headers is answered."""
    async with Raw(door) as raw:
        raw.writer.write(f"GET {path} HTTP/1.1\r\n".encode() + b"".join(
            name.encode() + b": " + value + b"\r\n" for name, value in headers.items()) + b"\r\n")
        return int((await raw.reader.readline()).split()[1])


@pytest.mark.parametrize("path", ["/api/chat", "/api/pcm", "/healthz", "/nowhere"])
@pytest.mark.parametrize("name", [*HEADERS, "Expect", "Cookie", "Origin", "Sec-WebSocket-Protocol"])
async def test_a_header_that_is_no_text_is_the_callers_error(door: WebDoor, path: str, name: str,
                                                             caplog: pytest.LogCaptureFixture) -> None:
    for value in (b"\xff\xfe", "é".encode()):
        assert await status(door, path, HEADERS | {name: value}) < 500
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_ticket_among_subprotocols_that_are_not_served_is_in_no_log(door: WebDoor,
                                                                            caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for prefix in ("moshimesh.ticket.", "openai-insecure-api-key."):
        assert await status(door, "/api/chat", HEADERS | {
            "Sec-WebSocket-Protocol": f"{prefix}ek_a-secret".encode()}) == 101
    assert "ek_a-secret" not in caplog.text
