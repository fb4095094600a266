"""Live callers at the pace of speech, and how long each of their frames took.

Each caller sends 80 ms of speech every 80 ms, from a random place in a random WAV. The latency of a frame is the time
from handing its audio to the stream until its answer is there, on the caller's own clock.

A microphone hands out audio in pieces, at moments of its own. `piece_s` is their length: each caller lets frames end
with the piece that comes nearest to the moments that the mesh has asked for, as `align` in the client does. With 80 ms
there is nothing to choose, and frames come at random phases.
"""

from __future__ import annotations

import asyncio
import gc
import math
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import moshimesh
import numpy as np
from rich.progress import Progress

from harness.recordings import FRAME_BYTES, UnreadableRecording, read_recording

FRAME_S = 0.08
# A microphone's pieces, for benchmarks of callers whose frames end at the moments that the mesh recommends.
PIECE_S = 0.01
DEADLINE_MS = 80.0
# Answers come while the caller sends the next frames; one that has not come after this long is lost.
PATIENCE_S = 10.0


@dataclass
class Caller:
    """One caller's frames by sequence: when each was sent, how long its answer took (ms), and where."""

    number: int
    sent: dict[int, float] = field(default_factory=dict)
    latency_ms: dict[int, float] = field(default_factory=dict)
    hops: dict[int, Sequence[moshimesh.HopTiming]] = field(default_factory=dict)
    gateway_ms: dict[int, float] = field(default_factory=dict)
    """From the arrival of the frame at the gateway until its answer left, on the gateway's clock."""
    session: str = ""
    answers: int = 0
    """Also those to the silence that is sent for the delay line: as many as the frames that only filled it."""
    skipped: int = 0
    error: str = ""


@dataclass(frozen=True)
class Figures:
    """What a load run came to. Latencies in ms over all frames of the measured part."""

    callers: int
    frames: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    late: int
    skipped: int
    errors: int

    @property
    def holds(self) -> bool:
        """Whether these callers were served as live callers should be."""
        return self.p99_ms < DEADLINE_MS and not self.skipped and not self.errors


def read_speech(path: Path) -> list[bytes]:
    """24 kHz mono 16 bit speech from one sound file or a folder of WAVs, where those that can't be read are named and
    left out. Ends the program when there is none.
    """
    speech, reasons = [], []
    for file in sorted(path.glob("*.wav")) if path.is_dir() else [path]:
        try:
            speech.append(read_recording(file))
        except UnreadableRecording as error:
            reasons.append(str(error))
    if not speech:
        raise SystemExit("load: " + ("; ".join(reasons) or f"no *.wav in the folder {path}"))
    for reason in reasons:
        sys.stderr.write(f"left out: {reason}\n")
    return speech


async def speak(caller: Caller, speech: bytes, frames: int, piece_s: float, due: asyncio.Future[float]
                ) -> AsyncIterator[bytes]:
    """One frame every 80 ms, in a loop over the speech, from the moment that the mesh recommends."""
    size = FRAME_BYTES
    pieces = len(speech) // size
    offset = random.randrange(pieces)
    end = await due + (random.random() - 0.5) * piece_s
    now = time.perf_counter()
    begin = now + (end - now) % FRAME_S
    for sequence in range(frames):
        await asyncio.sleep(max(0.0, begin + sequence * FRAME_S - time.perf_counter()))
        position = (offset + sequence) % pieces * size
        caller.sent[sequence] = time.perf_counter()
        yield speech[position:position + size]


async def run_caller(mesh: moshimesh.Mesh, caller: Caller, speech: bytes, start_s: float, frames: int,
                     piece_s: float = FRAME_S) -> None:
    """One call, whose audio comes in pieces of `piece_s`."""
    await asyncio.sleep(start_s)
    due: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    try:
        async for event in mesh.converse(speak(caller, speech, frames, piece_s, due), seed=caller.number):
            if isinstance(event, moshimesh.Speech):
                caller.answers += 1
                if event.sequence in caller.sent:  # the flush of the delay line was not sent by us
                    caller.latency_ms[event.sequence] = (time.perf_counter() - caller.sent[event.sequence]) * 1000
                    caller.hops[event.sequence] = event.hops
                    caller.gateway_ms[event.sequence] = (
                        event.hops[-1].finished_unix_nanos - event.capture_unix_nanos) / 1e6
                caller.skipped = event.frames_skipped
            elif isinstance(event, moshimesh.Ready):
                caller.session = event.session_id
                due.set_result(time.perf_counter() + event.frame_due_s)
    except moshimesh.MeshError as error:
        caller.error = str(error)


async def load(target: str, callers: int, ramp_s: float, seconds: float, speech: Sequence[bytes],
               progress: Progress | None = None, piece_s: float = FRAME_S) -> tuple[list[Caller], Figures]:
    """Run the callers; the figures leave out the ramp, when not all of them are there yet."""
    people = [Caller(number) for number in range(callers)]
    frames = round((ramp_s + seconds) / FRAME_S)
    gc.collect()
    gc.freeze()  # else collections would look through torch and earlier loads at times, and all callers wait
    everybody_at = time.perf_counter() + ramp_s + FRAME_S
    async with moshimesh.connect(target) as mesh:
        async def one(caller: Caller) -> None:
            start_s = ramp_s * caller.number / callers + random.random() * FRAME_S
            await run_caller(mesh, caller, random.choice(speech), start_s, frames - round(start_s / FRAME_S),
                             piece_s)

        running = asyncio.gather(*(one(caller) for caller in people))
        if progress is not None:
            task = progress.add_task(f"{callers} callers", total=ramp_s + seconds)
            while not running.done():
                await asyncio.wait((running,), timeout=0.5)
                progress.update(task, advance=0.5)
            progress.update(task, completed=ramp_s + seconds)
        await asyncio.wait_for(running, ramp_s + seconds + PATIENCE_S)
    return people, figures(people, everybody_at)


def figures(people: Sequence[Caller], since: float = 0.0) -> Figures:
    """Percentiles over the frames that were sent after `since` (perf_counter); infinite when none was answered."""
    latencies = [ms for caller in people for sequence, ms in caller.latency_ms.items() if caller.sent[sequence] > since]
    p50, p95, p99, longest = np.percentile(latencies, (50, 95, 99, 100)).tolist() if latencies else [math.inf] * 4
    return Figures(len(people), len(latencies), p50, p95, p99, longest,
                   sum(ms > DEADLINE_MS for ms in latencies), sum(caller.skipped for caller in people),
                   sum(bool(caller.error) for caller in people))
