"""What each door costs the gateway, over engines that compute nothing: CPU time per caller's frame, and added delay.

All doors share a mesh and take turns of a few seconds, so that the machine's moods meet all alike. Delay is from
sending a frame until its answer is there, on the caller's clock; the chat door's callers code Opus, which is in their
delay but not in the gateway's CPU time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import sphn
from rich.progress import Progress

from harness import pcm_load
from harness.load import FRAME_S, load, read_speech
from harness.null_mesh import NullMesh
from harness.recordings import FRAME_BYTES
from services.mesh.samples import from_s16

DOORS = ("grpc", "pcm", "chat", "realtime")
ANSWER_S = 0.5  # from a caller's last frame until it hangs up
CALLERS = 24  # what the load generator can code in Opus beside them, on the other core
OWN_MS: list[float] = []  # what WebSocket callers' frames spent outside of codec and lm
Turn = Callable[[NullMesh, list[bytes], float], Awaitable[tuple[int, list[float]]]]
"""Callers for some seconds: how many frames they sent, and the delays in ms."""


async def _grpc(mesh: NullMesh, speech: list[bytes], seconds: float) -> tuple[int, list[float]]:
    people, _ = await load(mesh.target, CALLERS, 0.5, seconds, speech)
    return sum(len(one.sent) for one in people), [ms for one in people for ms in one.latency_ms.values()]


async def _pcm(mesh: NullMesh, speech: list[bytes], seconds: float) -> tuple[int, list[float]]:
    people = await pcm_load.load(mesh.url, CALLERS, 0.5, seconds, speech)
    OWN_MS.extend(ms for one in people for ms in one.gateway_ms.values())
    return sum(len(one.sent) for one in people), [ms for one in people for ms in one.latency_ms.values()]


async def _chat(mesh: NullMesh, speech: list[bytes], seconds: float) -> tuple[int, list[float]]:
    frames = round(seconds / FRAME_S)

    async def one(session: aiohttp.ClientSession, number: int) -> tuple[int, list[float]]:
        writer = sphn.OpusStreamWriter(24_000)
        pcm = from_s16(speech[number % len(speech)])
        pages = [bytes([1]) + writer.append_pcm(pcm[at % (len(pcm) - 1920):][:1920]) for at in range(
            0, frames * 1920, 1920)]
        sent: list[float] = []
        delays: list[float] = []
        await asyncio.sleep(random.random() * FRAME_S)
        async with session.ws_connect(f"{mesh.url}/api/chat") as socket:
            async def speak() -> None:
                begin = time.perf_counter()
                for at, page in enumerate(pages):
                    await asyncio.sleep(max(0.0, begin + at * FRAME_S - time.perf_counter()))
                    sent.append(time.perf_counter())
                    await socket.send_bytes(page)
                await asyncio.sleep(ANSWER_S)
                await socket.close()

            speaking = asyncio.create_task(speak())
            answers = 0
            async for message in socket:
                # A page an answer; those with Opus' headers have position 0. The null model is one frame late.
                if message.data[:5] == b"\1OggS" and any(message.data[7:15]):
                    answers += 1
                    if answers < len(sent):
                        delays.append((time.perf_counter() - sent[answers]) * 1000)
            await speaking
        return len(sent), delays

    return await _together(one)


async def _realtime(mesh: NullMesh, speech: list[bytes], seconds: float) -> tuple[int, list[float]]:
    """The null model never speaks, and between responses this door says nothing: only its way in is measured."""
    frames = round(seconds / FRAME_S)

    async def one(session: aiohttp.ClientSession, number: int) -> tuple[int, list[float]]:
        pcm = speech[number % len(speech)]
        await asyncio.sleep(random.random() * FRAME_S)
        async with session.ws_connect(f"{mesh.url}/v1/realtime?model=any") as socket:
            await socket.receive()
            begin = time.perf_counter()
            for at in range(frames):
                await asyncio.sleep(max(0.0, begin + at * FRAME_S - time.perf_counter()))
                position = at * FRAME_BYTES % (len(pcm) - FRAME_BYTES)
                await socket.send_str(json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(
                    pcm[position:position + FRAME_BYTES]).decode()}))
        return frames, []

    return await _together(one)


async def _together(one: Callable[[aiohttp.ClientSession, int], Awaitable[tuple[int, list[float]]]]
                    ) -> tuple[int, list[float]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        results = await asyncio.gather(*(one(session, number) for number in range(CALLERS)))
    return sum(frames for frames, _ in results), [ms for _, delays in results for ms in delays]


TURNS: dict[str, Turn] = {"grpc": _grpc, "pcm": _pcm, "chat": _chat, "realtime": _realtime}


async def run(wav: Path, quick: bool, progress: Progress | None = None) -> dict[str, Any]:
    """For each door: the gateway's CPU time per frame in ms, callers per gateway core, and the delays in ms."""
    OWN_MS.clear()
    rounds, seconds = (2, 4.0) if quick else (5, 6.0)
    speech = read_speech(wav)
    cpu_ms: dict[str, list[float]] = {door: [] for door in DOORS}
    delays: dict[str, list[float]] = {door: [] for door in DOORS}
    task = progress.add_task("doors", total=rounds * len(DOORS)) if progress is not None else None
    async with NullMesh(slots=CALLERS + 8) as mesh:
        gateway = psutil.Process(mesh.processes["gateway"].child.pid)  # type: ignore[union-attr]
        for _ in range(rounds):
            for door in DOORS:
                before = sum(gateway.cpu_times()[:2])
                frames, waits = await TURNS[door](mesh, speech, seconds)
                cpu_ms[door].append((sum(gateway.cpu_times()[:2]) - before) * 1000 / frames)
                delays[door] += waits
                if progress is not None and task is not None:
                    progress.update(task, advance=1)
    figures: dict[str, Any] = {}
    for door in DOORS:
        ms = statistics.median(cpu_ms[door])
        figures[door] = {"cpu_ms_per_frame": ms, "callers_per_core": FRAME_S * 1000 / ms}
        with contextlib.suppress(ValueError, IndexError):
            p50, p95 = np.percentile(delays[door], (50, 95)).tolist()
            figures[door] |= {"delay_p50_ms": p50, "delay_p95_ms": p95}
    ratios = [pcm / grpc for pcm, grpc in zip(cpu_ms["pcm"], cpu_ms["grpc"], strict=True)]
    own_p50, own_p95 = np.percentile(OWN_MS, (50, 95)).tolist()
    figures["pcm"] |= {"own_p50_ms": own_p50, "own_p95_ms": own_p95}
    return {"doors": figures, "websocket_cpu_ratio": statistics.median(ratios)}
