"""A caller of `/api/pcm` (docs/websocket.md), for tests and benchmarks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from services.gateway.edges.pcm import F32LE, G711_A_LAW, G711_MU_LAW, S16LE
from services.gateway.path.audio import Pcm

FORMATS = {"s16le": S16LE, "f32le": F32LE, "mulaw": G711_MU_LAW, "alaw": G711_A_LAW}
PIECE_S = 0.02  # as telephones send


@dataclass
class HeldCall:
    """What a caller was told, in order."""

    ready: Mapping[str, Any] = field(default_factory=dict)
    audio: list[bytes] = field(default_factory=list)
    """Binary messages: one per frame."""
    told: list[dict[str, Any]] = field(default_factory=list)
    """All text messages."""
    close_code: int | None = None

    @property
    def frames(self) -> list[dict[str, Any]]:
        """What came before each frame's audio."""
        return self.of("frame")

    @property
    def text(self) -> str:
        """What the model said."""
        return "".join(frame["text"] for frame in self.frames)

    @property
    def summary(self) -> dict[str, Any] | None:
        """None when the call did not end well; then see `error`."""
        return next(iter(self.of("summary")), None)

    @property
    def error(self) -> dict[str, Any] | None:
        """Why the mesh ended the call."""
        return next(iter(self.of("error")), None)

    def of(self, type: str) -> list[dict[str, Any]]:
        """The messages of a type."""
        return [message for message in self.told if message["type"] == type]

    def pcm(self, format: str) -> Pcm:
        """What the model said: float32 [samples]."""
        return FORMATS[format].decode(b"".join(self.audio))


async def hold(url: str, pcm: Pcm, format: str = "s16le", rate: int = 24_000, *,
               headers: Mapping[str, str] | None = None, **asked: Any) -> HeldCall:
    """Say a recording, float32 [samples] at `rate`, and return what the mesh answers to it.

    `url` is the mesh's (http://localhost:8080); `asked` goes into the open message: pacing (offline by default), frames
    (true), sampling ... Raises aiohttp.WSServerHandshakeError when the mesh refuses the upgrade.
    """
    samples = round(PIECE_S * rate)
    pieces = [FORMATS[format].encode(pcm[at:at + samples]) for at in range(0, len(pcm), samples)]
    async with aiohttp.ClientSession() as session, session.ws_connect(
            f"{url}/api/pcm", protocols=("moshimesh",), headers=headers) as socket:
        await socket.send_json({"type": "open", "format": format, "rate": rate, "frames": True, "pacing": "offline",
                                **asked})
        return await say(socket, [*pieces, '{"type": "end"}'])


async def say(socket: aiohttp.ClientWebSocketResponse, messages: Sequence[bytes | str]) -> HeldCall:
    """Send messages as fast as they are taken, and return what comes until the socket is closed."""
    sending = asyncio.create_task(_send(socket, messages))
    try:
        return await heard(socket)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def heard(socket: aiohttp.ClientWebSocketResponse) -> HeldCall:
    """What comes until the socket is closed."""
    call = HeldCall()
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            call.audio.append(message.data)
        elif message.type is aiohttp.WSMsgType.TEXT:
            told = json.loads(message.data)
            call.told.append(told)
            if told["type"] == "ready":
                call.ready = told
    call.close_code = socket.close_code
    return call


async def _send(socket: aiohttp.ClientWebSocketResponse, messages: Iterable[bytes | str]) -> None:
    for message in messages:
        if isinstance(message, bytes):
            await socket.send_bytes(message)
        else:
            await socket.send_str(message)
