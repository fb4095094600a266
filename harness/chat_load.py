"""Live callers of `/api/chat` at the pace of speech; harness/load.py has those of gRPC, and what is measured.

Each speaks to Moshi's own clients' rules: Opus pages of 80 ms, which are made before the load begins, since coding is
the callers' cost and not the mesh's. Answers are counted, not decoded.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import aiohttp
import numpy as np
import sphn

from harness.load import FRAME_S, PATIENCE_S, Caller
from harness.recordings import FRAME_BYTES

RATE = 24_000
AUDIO = 1


def messages_of(speech: bytes, frames: int) -> list[bytes]:
    """Audio messages of so many frames, in a loop over 16 bit speech."""
    writer, offset = sphn.OpusStreamWriter(RATE), random.randrange(len(speech) // FRAME_BYTES)
    pieces = len(speech) // FRAME_BYTES
    pcm = np.frombuffer(speech[:pieces * FRAME_BYTES], "<i2").reshape(pieces, -1).astype(np.float32) / 32768
    return [bytes([AUDIO]) + writer.append_pcm(pcm[(offset + number) % pieces]) for number in range(frames)]


async def run_caller(session: aiohttp.ClientSession, url: str, caller: Caller, messages: Sequence[bytes],
                     start_s: float) -> None:
    """One call. The latency of an answer is counted from the frame that came as many before it as the model is late:
    which frame it answers is not said, and all frames come at the same distance.
    """
    await asyncio.sleep(start_s)
    async with session.ws_connect(f"{url}/api/chat", params={"seed": str(caller.number)}) as socket:
        await socket.receive_bytes()  # the handshake
        speaking = asyncio.create_task(_speak(socket, caller, messages))
        try:
            while caller.answers < len(messages) - 1:
                message = await socket.receive(PATIENCE_S)
                if message.type is not aiohttp.WSMsgType.BINARY or message.data[0] == 5:
                    caller.error = str(message.data)
                    break
                if message.data[0] == AUDIO:
                    caller.answers += 1
                    if caller.answers in caller.sent:
                        caller.latency_ms[caller.answers] = (
                            time.perf_counter() - caller.sent[caller.answers]) * 1000
        except asyncio.TimeoutError:
            caller.error = "answers are missing"
        finally:
            speaking.cancel()


async def _speak(socket: aiohttp.ClientWebSocketResponse, caller: Caller, messages: Sequence[bytes]) -> None:
    begin = time.perf_counter() + random.random() * FRAME_S
    for sequence, message in enumerate(messages):
        await asyncio.sleep(max(0.0, begin + sequence * FRAME_S - time.perf_counter()))
        caller.sent[sequence] = time.perf_counter()
        await socket.send_bytes(message)


async def load(url: str, callers: int, ramp_s: float, seconds: float, speech: Sequence[bytes]) -> list[Caller]:
    """Run the callers, who begin one after another within `ramp_s`."""
    people = [Caller(number) for number in range(callers)]
    frames = round((ramp_s + seconds) / FRAME_S)
    said = [messages_of(one, frames) for one in speech]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        starts = [ramp_s * caller.number / callers + random.random() * FRAME_S for caller in people]
        await asyncio.wait_for(asyncio.gather(*(
            run_caller(session, url, caller, random.choice(said)[:frames - round(start_s / FRAME_S)], start_s)
            for caller, start_s in zip(people, starts, strict=True))), ramp_s + seconds + PATIENCE_S)
    return people
