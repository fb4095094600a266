"""Live callers whose frames come when the mesh would like to have them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import moshimesh
import numpy as np
import numpy.typing as npt
import pytest
from moshimesh.aligned import Aligned
from moshimesh.gateway.v1 import conversation_pb2

from harness.local_mesh import LocalMesh
from tests.e2e.calls import GREEDY, slots_are_free

FRAME_MS, PIECE_MS = 80.0, 20
SAMPLES = 1920


async def microphone(pcm: npt.NDArray[np.float32], start_ms: float, piece_ms: int = PIECE_MS) -> AsyncIterator[bytes]:
    """The audio in pieces of a microphone that was switched on `start_ms` after it was asked."""
    loop = asyncio.get_running_loop()
    samples = 24 * piece_ms
    begin = loop.time() + start_ms / 1000
    for number, offset in enumerate(range(0, len(pcm), samples)):
        await asyncio.sleep(max(begin + (number + 1) * piece_ms / 1000 - loop.time(), 0))
        yield pcm[offset:offset + samples].astype("<f4").tobytes()


def apart_ms(one: float, other: float) -> float:
    """How far two phases are apart, the short way round."""
    return abs((one - other + FRAME_MS / 2) % FRAME_MS - FRAME_MS / 2)


@pytest.mark.parametrize(("start_ms", "piece_ms"), [(0, 20), (7, 20), (33, 10), (0, 80), (5, 30)])
async def test_frames_are_the_audio_behind_less_than_a_frame_of_silence(
        speech: npt.NDArray[np.float32], start_ms: float, piece_ms: int) -> None:
    loop = asyncio.get_running_loop()
    pcm = speech[:24 * 700]
    aligned = Aligned(microphone(pcm, start_ms, piece_ms), 4, 4 * 24_000)
    due = loop.time() + 0.05
    aligned.open(conversation_pb2.ConverseReady(samples_per_frame=SAMPLES, frame_due_us=50_000))
    frames, off_ms = [], []
    async for frame in aligned.frames():
        frames.append(frame)
        off_ms.append(apart_ms((loop.time() - due) * 1000, 0))
    assert {len(frame) for frame in frames[:-1]} == {4 * SAMPLES}
    assert 0 < len(frames[-1]) <= 4 * SAMPLES
    audio = b"".join(frames)
    lead = len(audio) - 4 * len(pcm)
    assert 0 <= lead < 4 * SAMPLES and audio == bytes(lead) + pcm.astype("<f4").tobytes()
    if piece_ms == FRAME_MS:
        assert lead == 0, "there is nothing to choose"
    elif FRAME_MS % piece_ms == 0:
        assert np.median(off_ms[:-1]) < piece_ms / 2 + 5


async def test_two_callers_come_when_the_encoder_wants_them(mesh: LocalMesh, speech: npt.NDArray[np.float32]) -> None:
    assert await slots_are_free(mesh)

    async def arrivals_ms(start_ms: float) -> float:
        """Where in a frame's time this caller's frames came to the gateway."""
        async with moshimesh.connect(mesh.target) as connected:
            phases = [event.capture_unix_nanos / 1e6 % FRAME_MS async for event in connected.converse(
                microphone(speech[:24 * 3000], start_ms), encoding="f32", align=True, **GREEDY)
                if isinstance(event, moshimesh.Speech)]
        assert len(phases) >= 37
        at_a_time = np.median([(phase - phases[5] + FRAME_MS / 2) % FRAME_MS for phase in phases[1:36]])
        return float(at_a_time + phases[5] - FRAME_MS / 2) % FRAME_MS

    one, other = await asyncio.gather(arrivals_ms(3), arrivals_ms(51))
    for phase in (one, other):
        assert min(apart_ms(phase, 0), apart_ms(phase, 40)) < PIECE_MS / 2 + 8, (one, other)
    assert apart_ms(one, other) > 40 - PIECE_MS - 8, (one, other)
