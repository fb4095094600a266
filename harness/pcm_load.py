"""Live callers of `/api/pcm` at the pace of speech; harness/load.py has those of gRPC, and what is measured."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence

import aiohttp

from harness.load import FRAME_S, PATIENCE_S, Caller
from harness.recordings import FRAME_BYTES


async def run_caller(session: aiohttp.ClientSession, url: str, caller: Caller, speech: bytes, start_s: float,
                     frames: int) -> None:
    """One call, with a frame of s16le a message."""
    await asyncio.sleep(start_s)
    async with session.ws_connect(f"{url}/api/pcm", protocols=("moshimesh",)) as socket:
        await socket.send_json({"type": "open", "frames": True, "sampling": {"seed": caller.number}})
        ready = await socket.receive_json()
        caller.session = ready["session_id"]
        begin = time.perf_counter() + ready["frame_due_us"] / 1e6 + random.random() * FRAME_S
        speaking = asyncio.create_task(_speak(socket, caller, speech, frames, begin))
        told = {"sequence": -1}
        try:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    sequence = told["sequence"]
                    caller.answers += 1
                    if sequence in caller.sent:
                        caller.latency_ms[sequence] = (time.perf_counter() - caller.sent[sequence]) * 1000
                elif message.data.startswith('{"type": "frame"'):
                    told = json.loads(message.data)
                    caller.skipped = told["skipped"]
                    caller.gateway_ms[told["sequence"]] = _own_ms(told["hops"])
                elif message.data.startswith('{"type": "error"'):
                    caller.error = message.data
        finally:
            speaking.cancel()


def _own_ms(hops: Sequence[tuple[str, int, int, int, int, int]]) -> float:
    """What a frame's way through the mesh took but for codec and lm: the gateway, and the way to and from them."""
    inside = sum(hop[4] - hop[1] for hop in hops if not hop[0].startswith("gateway."))
    return (hops[-1][4] - hops[0][1] - inside) / 1000


async def _speak(socket: aiohttp.ClientWebSocketResponse, caller: Caller, speech: bytes, frames: int, begin: float
                 ) -> None:
    pieces = len(speech) // FRAME_BYTES
    offset = random.randrange(pieces)
    for sequence in range(frames):
        await asyncio.sleep(max(0.0, begin + sequence * FRAME_S - time.perf_counter()))
        position = (offset + sequence) % pieces * FRAME_BYTES
        caller.sent[sequence] = time.perf_counter()
        await socket.send_bytes(speech[position:position + FRAME_BYTES])
    await socket.send_str('{"type": "end"}')


async def load(url: str, callers: int, ramp_s: float, seconds: float, speech: Sequence[bytes]) -> list[Caller]:
    """Run the callers, who begin one after another within `ramp_s`."""
    people = [Caller(number) for number in range(callers)]
    frames = round((ramp_s + seconds) / FRAME_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        starts = [ramp_s * caller.number / callers + random.random() * FRAME_S for caller in people]
        await asyncio.wait_for(asyncio.gather(*(
            run_caller(session, url, caller, random.choice(speech), start_s, frames - round(start_s / FRAME_S))
            for caller, start_s in zip(people, starts, strict=True))), ramp_s + seconds + PATIENCE_S)
    return people
