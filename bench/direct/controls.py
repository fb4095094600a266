"""Forks, voices and prompts on a real mesh; and the tests that compare controls with moshi's own loop, run again."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import moshimesh
from moshimesh.audio.v1 import audio_pb2
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.gateway.v1 import conversation_pb2_grpc

from harness.load import load, read_speech
from harness.local_mesh import ROOT, LocalMesh
from harness.recordings import FRAME_BYTES

OPENINGS = 9  # of each kind, in turns
PROMPT_S = 10
LIVE_CALLERS, LIVE_S = 8, 12.0
BEFORE, AFTER = 60, 60  # frames before a fork, and after it
WRITTEN_S = 1.5  # until the last steps are in the journal


def _passes(tests: str, chosen: str) -> bool:
    return subprocess.run([sys.executable, "-m", "pytest", "-q", tests, "-k", chosen], cwd=ROOT, capture_output=True,
                          check=False).returncode == 0


async def run(checkpoint: str) -> dict[str, Any]:
    """The figures."""
    speech = read_speech(ROOT / "samples" / "long-turn.wav")[0]
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in (("short", 5), ("long", PROMPT_S)):
            with wave.open(str(Path(folder) / f"{name}.wav"), "wb") as wav:
                wav.setparams((1, 2, 24_000, 0, "NONE", ""))
                wav.writeframes((speech * 9)[:2 * 24_000 * seconds])
        async with LocalMesh(checkpoint, slots=12, gateway_flags=("--voices", folder)) as mesh:
            return {"interrupt_exact": _passes("tests/e2e/test_directing.py", "interrupted_call"),
                    "control_survives_kill": _passes("tests/e2e/test_directing.py", "killed_right_behind"),
                    "fork_equal": await _fork_equal(mesh.target, speech),
                    "voice_open_extra_ms": round(await _voice_open_extra_ms(mesh.target), 1),
                    **await _late_because_of_prompt(mesh.target)}


async def _fork_equal(target: str, speech: bytes) -> bool:
    """Whether a fork with the same seed answers the same audio with the same tokens, and leaves its parent alone."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = conversation_pb2_grpc.ConversationServiceStub(channel)
        whole, _, _ = await _held(stub, pb.ConverseConfig(), speech, 0, BEFORE + AFTER)
        parent, handle, go_on = await _held(stub, pb.ConverseConfig(), speech, 0, BEFORE, stay=True)
        await asyncio.sleep(WRITTEN_S)
        fork, _, _ = await _held(stub, pb.ConverseConfig(
            fork_handle=handle, first_sequence=BEFORE - 30, answered_sequence=BEFORE - 10), speech, BEFORE - 30,
            BEFORE + AFTER)
        rest = await go_on(BEFORE + AFTER)
    return parent | rest == whole and bool(fork) and all(whole[step] == tokens for step, tokens in fork.items())


async def _held(stub: Any, config: pb.ConverseConfig, speech: bytes, first: int, until: int, stay: bool = False) -> Any:
    """The tokens of a call's answers by sequence, its handle, and what goes on with it if it is to `stay` open."""
    config.sample_rate_hertz, config.pacing = 24_000, pb.PACING_OFFLINE
    config.encoding = audio_pb2.AUDIO_ENCODING_PCM_S16LE
    config.sampling.seed = 11
    call = stub.Converse()
    await call.write(pb.ConverseRequest(config=config))
    ready = (await call.read()).ready
    told: dict[int, tuple[int, ...]] = {}

    async def say(begin: int, end: int, last: bool) -> dict[int, tuple[int, ...]]:
        for frame in range(begin, end):
            at = frame * FRAME_BYTES % (len(speech) - FRAME_BYTES)
            await call.write(pb.ConverseRequest(audio=pb.AudioChunk(pcm=speech[at:at + FRAME_BYTES])))
        if last:
            await call.done_writing()
        answers: dict[int, tuple[int, ...]] = {}
        while (response := await call.read()) is not grpc.aio.EOF:
            if response.HasField("speech"):
                answers[response.speech.context.sequence] = (response.speech.text_token, *response.speech.codes)
                if not last and response.speech.context.sequence == end - 1:
                    break
        return answers

    told = await say(first, until, not stay)
    return told, ready.resume_handle, lambda end: say(until, end, True)


async def _voice_open_extra_ms(target: str) -> float:
    """How much later a call with a known voice opens than one without: the medians of openings in turns."""
    async with moshimesh.connect(target) as client:
        async def opened_ms(voice: str) -> float:
            began = time.monotonic()
            async for event in client.converse(bytes(FRAME_BYTES), voice=voice):
                if isinstance(event, moshimesh.Ready):
                    return (time.monotonic() - began) * 1000
            raise AssertionError("it never opened")

        await opened_ms("short")  # from now on it is known
        pairs = [(await opened_ms("short"), await opened_ms("")) for _ in range(OPENINGS)]
    return statistics.median(one for one, _ in pairs) - statistics.median(other for _, other in pairs)


async def _late_because_of_prompt(target: str) -> dict[str, int]:
    """Late frames of eight live callers beside calls that open with a voice of ten seconds and a text that nobody has
    had before, and without them.
    """
    speech = read_speech(ROOT / "samples")

    async def opening() -> None:
        number = 0
        async with moshimesh.connect(target) as client:
            while True:
                number += 1
                async for event in client.converse(_silence(), voice="long", text_prompt=f"this is prompt {number}"):
                    if isinstance(event, moshimesh.Ready):
                        break
                await asyncio.sleep(2.0)

    late = {}
    for name in ("late_without_prompt", "late_beside_prompts"):
        beside = asyncio.create_task(opening()) if name == "late_beside_prompts" else None
        _, figures = await load(target, LIVE_CALLERS, 1.0, LIVE_S, speech)
        if beside is not None:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
        late[name] = figures.late
    return {**late, "late_because_of_prompt": max(late["late_beside_prompts"] - late["late_without_prompt"], 0)}


async def _silence() -> AsyncIterator[bytes]:
    yield bytes(FRAME_BYTES)
