"""What a stranger does at each door, one thing after the other; none of it waits for a polite end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import grpc
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.lm.v1 import lm_pb2

from services.gateway.sessions.sealing import Handle
from tests.gateway.web_door import WebDoor

SERVICE = "/moshimesh.gateway.v1.ConversationService/"
Attack = Callable[[], Awaitable[object]]
CONFIG = pb.ConverseRequest(config=pb.ConverseConfig(sample_rate_hertz=24_000, pacing=pb.PACING_OFFLINE))


def attacks(channel: grpc.aio.Channel, web: WebDoor) -> dict[str, Attack]:
    """By name. Each may raise what a client of its door raises."""
    async def streamed(method: str, *requests: bytes) -> None:
        async def sent() -> AsyncIterator[bytes]:
            for request in requests:
                yield request

        call = channel.stream_stream(SERVICE + method)(sent(), timeout=2)
        try:
            async for _ in call:
                pass
        finally:
            call.cancel()

    async def told(path: str, *messages: bytes | str) -> None:
        async with web.connect(path) as socket:
            for message in messages:
                await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message))
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                while (await socket.receive(0.2)).type is not aiohttp.WSMsgType.CLOSED:
                    pass

    async def raw(data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(web.url.rpartition(":")[2]))
        try:
            writer.write(data)
            await asyncio.wait_for(reader.read(1000), 0.2)
        finally:
            writer.transport.abort()

    def message(**fields: Any) -> bytes:
        return pb.ConverseRequest(**fields).SerializeToString()

    config, tiny = CONFIG.SerializeToString(), message(audio=pb.AudioChunk(pcm=bytes(4)))
    bomb = b"\x0a\xff\x7f" * 20_000
    unknown = b"\xc2\x3e" + b"\x80\x80\x30" + bytes(786_432)  # a field of 0.75 MB that nobody knows
    resumed = message(config=pb.ConverseConfig(sample_rate_hertz=24_000, resume_handle=Handle.new().text))
    past = pb.RecordedSteps(controls=[lm_pb2.StepControlsAt(step=step) for step in range(50_000)])
    return {
        "a byte that is no message": lambda: streamed("Converse", b"\xff"),
        "nested nonsense": lambda: streamed("Converse", bomb),
        "a large unknown field": lambda: streamed("Converse", message(config=pb.ConverseConfig(
            sample_rate_hertz=24_000, sampling=lm_pb2.Sampling.FromString(unknown)))),
        "pieces of one sample": lambda: streamed("Converse", config, *[tiny] * 200),
        "too many controls": lambda: streamed("Converse", config, *[
            message(control=pb.Control(interrupt=pb.Interrupt()))] * 200),
        "handles of nobody": lambda: streamed("Converse", resumed),
        "a replay of many controls": lambda: streamed("Replay", pb.ReplayRequest(
            config=pb.ReplayConfig(past=past)).SerializeToString()),
        "infinite sound": lambda: streamed("Converse", config, message(
            audio=pb.AudioChunk(pcm=b"\0\0\x80\x7f" * 1920))),
        "calls that hang up": lambda: asyncio.wait_for(streamed("Converse", config), 0.05),
        "information": lambda: channel.unary_unary(SERVICE + "GetInfo")(b"", timeout=2),
        "a wrong checksum": lambda: told("/api/chat", b"\1OggS" + bytes(100)),
        "deep JSON": lambda: told("/api/pcm", "[" * 10_000),
        "sound that is none": lambda: told("/api/pcm?format=opus", b"\xff" * 1000, b""),
        "values without end": lambda: told("/v1/realtime", "[" + "1," * 500_000 + "1]"),
        "items without end": lambda: told("/v1/realtime", *[json.dumps(
            {"type": "conversation.item.create", "item": {"type": "message", "x": "a" * 60_000}})] * 20),
        "a session of nothing": lambda: told("/v1/live/sessions", "{}"),
        "bytes that are no HTTP": lambda: raw(b"\x16\x03\x01" + bytes(2000)),
        "a frame of a gigabyte": lambda: raw(
            b"GET /api/chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: "
            b"13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n\x82\xff" + struct.pack(">Q", 1 << 30) +
            bytes(50_000)),
    }


async def repeated(all: dict[str, Attack], until: asyncio.Event, pause_s: float) -> dict[str, int]:
    """One after the other, with a pause, until an event; how often each was done."""
    done = dict.fromkeys(all, 0)
    while not until.is_set():
        for name, attack in all.items():
            with contextlib.suppress(grpc.RpcError, aiohttp.ClientError, ConnectionError, asyncio.TimeoutError,
                                     TimeoutError):
                await attack()
            done[name] += 1
            await asyncio.sleep(pause_s)
    return done
