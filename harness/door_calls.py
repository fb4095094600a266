"""A short call at each door of the HTTP port by the plainest client of its protocol, and all that was secret in it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable

import aiohttp
import numpy as np
import numpy.typing as npt
import sphn

from services.mesh.samples import to_s16

RATE, PIECE = 24_000, 1920
ANSWER_S = 3.0  # after the last of the caller's audio: what is heard by then is enough
Secrets = dict[str, "str | bytes"]


async def chat(url: str, pcm: npt.NDArray[np.float32], ticket: str) -> Secrets:
    """`/api/chat`, where a browser shows its ticket as a subprotocol."""
    writer, text, sound, handle = sphn.OpusStreamWriter(RATE), "", [], ""
    said = [b"\1" + writer.append_pcm(pcm[at:at + PIECE]) for at in range(0, len(pcm) - PIECE, PIECE)]
    async for message in _call(f"{url}/api/chat?resume=1", said, protocols=(f"moshimesh.ticket.{ticket}",)):
        assert isinstance(message, bytes)
        if message[:1] == b"\1":
            sound.append(message[1:])
        elif message[:1] == b"\2":
            text += message[1:].decode()
        elif message[:1] == b"\4":
            handle = handle or json.loads(message[1:]).get("resume_handle", "")
    return {"the ticket of chat": ticket, "the handle of chat": handle, "the text of chat": text,
            "the Opus of chat": max(sound, key=len)}


async def realtime(url: str, pcm: npt.NDArray[np.float32], secret: str) -> Secrets:
    """`/v1/realtime`, with a client secret."""
    said = [json.dumps({"type": "input_audio_buffer.append", "audio": piece}) for piece in _base64(pcm)]
    text, sound = await _told(f"{url}/v1/realtime?model=any", said, {"Authorization": f"Bearer {secret}"},
                              "response.output_audio.delta", "response.output_audio_transcript.delta")
    return {"the secret of Realtime": secret, "the text of Realtime": text, "the sound of Realtime": sound}


async def live(url: str, pcm: npt.NDArray[np.float32], ticket: str) -> Secrets:
    """`/v1/live/sessions`, with a ticket as a header."""
    said = [json.dumps({"type": "session.start", "session": {"model": "any", "audio": {"format": {
        "type": "audio/pcm", "rate": RATE}}}})]
    said += [json.dumps({"type": "session.input_audio.append", "audio": piece}) for piece in _base64(pcm)]
    text, sound = await _told(f"{url}/v1/live/sessions", said, {"Authorization": f"Bearer {ticket}"},
                              "session.output_audio.delta", "session.output_transcript.delta")
    return {"the ticket of Live": ticket, "the text of Live": text, "the sound of Live": sound}


def _base64(pcm: npt.NDArray[np.float32]) -> Iterable[str]:
    data = to_s16(pcm)
    return (base64.b64encode(data[at:at + 2 * PIECE]).decode() for at in range(0, len(data), 2 * PIECE))


async def _told(url: str, said: list[str], headers: dict[str, str], audio: str, words: str) -> tuple[str, bytes]:
    """What was said to us as text, and the end of the sound: PCM of a piece that is not silent."""
    text, sound = "", b""
    async for message in _call(url, said, headers=headers):
        told = json.loads(message)
        assert told["type"] != "error", told
        if told["type"] == audio:
            piece = base64.b64decode(told["delta"])
            sound = piece[:64] if np.abs(np.frombuffer(piece[:64], "<i2")).min(initial=1) else sound
        elif told["type"] == words:
            text += told["delta"]
    return text, sound


async def _call(url: str, said: list[bytes] | list[str], *, headers: dict[str, str] | None = None,
                protocols: Iterable[str] = ()) -> AsyncIterator[bytes | str]:
    """Say all of it at the pace of speech; what comes until ANSWER_S after that. Raises aiohttp.ClientError."""
    async with aiohttp.ClientSession() as http, http.ws_connect(url, headers=headers, protocols=protocols) as socket:
        async def speak() -> None:
            for one in said:
                await (socket.send_bytes(one) if isinstance(one, bytes) else socket.send_str(one))
                await asyncio.sleep(PIECE / RATE)
            await asyncio.sleep(ANSWER_S)
            await socket.close()

        speaking = asyncio.create_task(speak())
        try:
            async for message in socket:
                yield message.data
            await speaking  # raises when the mesh had closed the socket before the last word
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
