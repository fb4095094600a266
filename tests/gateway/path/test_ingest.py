"""From pieces to frames: cutting, skipping, holding back, flushing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from services.gateway.path.audio import AudioFormat, Pcm
from services.gateway.path.ingest import IN_FLIGHT_FRAMES, LIVE_SLACK_FRAMES, CallerFrame, Ingest
from services.mesh.errors import InvalidRequest
from tests.gateway.fake_observer import Heard
from tests.until import settled

FRAME = 8
FORMAT = AudioFormat(100, FRAME)
SILENCE = np.zeros(FRAME, np.float32)


async def pieces(sizes: Sequence[int]) -> AsyncIterator[Pcm]:
    """A ramp cut into pieces of these sizes, in samples."""
    begin = 0
    for size in sizes:
        yield np.arange(begin, begin + size, dtype=np.float32)
        begin += size


async def spoken(audio: asyncio.Queue[int | None]) -> AsyncIterator[Pcm]:
    """A frame for each number, until there is None."""
    while (frame := await audio.get()) is not None:
        yield np.full(FRAME, frame, dtype=np.float32)


class Sent:
    """Where frames go, and what else was said."""

    def __init__(self) -> None:
        self.frames: list[CallerFrame] = []
        self.over = asyncio.Event()
        self.failure: Exception | None = None

    def send(self, frame: CallerFrame) -> None:
        self.frames.append(frame)

    def end(self) -> None:
        self.over.set()

    def fail(self, error: Exception) -> None:
        self.failure = error
        self.over.set()


async def drain(ingest: Ingest) -> list[CallerFrame]:
    """All frames, each answered at once."""
    sent = Sent()
    ingest.send_to(sent)
    return await answer(ingest, sent, 0)


async def answer(ingest: Ingest, sent: Sent, answered: int) -> list[CallerFrame]:
    """All frames, when those have been answered that have not been yet."""
    while not sent.over.is_set() or answered < len(sent.frames):
        await asyncio.sleep(0)
        if answered < len(sent.frames):
            answered += 1
            ingest.answered()
    if sent.failure is not None:
        raise sent.failure
    return sent.frames


def samples(frames: Sequence[CallerFrame]) -> np.ndarray:
    return np.frombuffer(b"".join(frame.pcm for frame in frames), dtype="<f4")


@pytest.mark.parametrize("sizes", [[1] * 40, [8] * 5, [3, 37], [40]])
async def test_any_pieces_give_the_same_frames_and_the_delay_line_is_flushed(sizes: list[int]) -> None:
    ingest = Ingest(FORMAT, Heard(), live=False, delay_frames=2)
    _, frames = await asyncio.gather(ingest.read(pieces(sizes)), drain(ingest))
    assert [frame.sequence for frame in frames] == list(range(7))
    assert (samples(frames) == [*range(40), *[0] * 16]).all()
    assert (ingest.frames_heard, ingest.frames_skipped) == (5, 0)


async def test_the_last_frame_is_filled_up() -> None:
    ingest = Ingest(FORMAT, Heard(), live=True, delay_frames=1)
    await ingest.read(pieces([11]))
    frames = await drain(ingest)
    assert (samples(frames) == [*range(11), *[0] * 5, *[0] * 8]).all()
    assert ingest.frames_heard == 2


async def test_nothing_said_nothing_flushed() -> None:
    ingest = Ingest(FORMAT, Heard(), live=True, delay_frames=1)
    await ingest.read(pieces([]))
    assert await drain(ingest) == []


async def test_a_live_caller_hears_the_present() -> None:
    ingest = Ingest(FORMAT, Heard(), live=True, delay_frames=0)
    await ingest.read(pieces([FRAME] * 10))  # nobody takes frames meanwhile
    frames = await drain(ingest)
    assert [frame.sequence for frame in frames] == list(range(9 - LIVE_SLACK_FRAMES, 10))
    assert ingest.frames_skipped == 9 - LIVE_SLACK_FRAMES
    assert ingest.frames_heard == len(frames)


async def test_a_live_caller_with_large_pieces_loses_nothing() -> None:
    ingest = Ingest(FORMAT, Heard(), live=True, delay_frames=0)
    await ingest.read(pieces([FRAME * 10]))
    assert len(await drain(ingest)) == 10
    assert ingest.frames_skipped == 0


async def test_an_offline_caller_is_held_back() -> None:
    taken = 0

    async def endless() -> AsyncIterator[Pcm]:
        nonlocal taken
        while True:
            taken += 1
            yield SILENCE

    ingest = Ingest(FORMAT, Heard(), live=False, delay_frames=0)
    reader = asyncio.create_task(ingest.read(endless()))
    await settled()
    assert taken == IN_FLIGHT_FRAMES + 1
    sent = Sent()
    ingest.send_to(sent)
    await settled()
    assert len(sent.frames) == IN_FLIGHT_FRAMES  # no answer yet, so no more frames
    assert taken == 2 * IN_FLIGHT_FRAMES + 1
    ingest.answered()
    assert len(sent.frames) == IN_FLIGHT_FRAMES + 1
    reader.cancel()


@pytest.mark.parametrize("piece", [[], [0.0] * 101, [np.nan], [np.inf], [1e30]])
async def test_bad_audio_is_refused_where_frames_are_taken(piece: list[float]) -> None:
    async def bad() -> AsyncIterator[Pcm]:
        yield np.array(piece, np.float32)

    ingest = Ingest(FORMAT, Heard(), live=True, delay_frames=0)
    await ingest.read(bad())
    with pytest.raises(InvalidRequest):
        await drain(ingest)


async def test_a_live_call_that_is_held_up_loses_nothing() -> None:
    """A replica hangs for ten frames' time; what was said meanwhile is heard when the session has moved."""
    clock = [100.0]
    ingest = Ingest(FORMAT, Heard(), live=True, delay_frames=0, now=lambda: clock[0])
    audio: asyncio.Queue[int | None] = asyncio.Queue()
    reading = asyncio.create_task(ingest.read(spoken(audio)))
    sent = Sent()
    ingest.send_to(sent)
    for frame in range(30):
        audio.put_nowait(frame)
        await settled()
        clock[0] += 0.08
        if frame < 10:
            ingest.answered()
    assert len(sent.frames) == 10 + IN_FLIGHT_FRAMES
    for _ in range(IN_FLIGHT_FRAMES):
        ingest.answered()
    audio.put_nowait(None)
    heard = await answer(ingest, sent, 10 + IN_FLIGHT_FRAMES)
    await reading
    assert [frame.sequence for frame in heard] == list(range(30))
    assert ingest.frames_skipped == 0


async def test_a_live_call_in_a_mesh_that_is_only_slow_skips() -> None:
    """Answers come, but half as fast as speech."""
    clock = [100.0]
    ingest = Ingest(FORMAT, Heard(), live=True, delay_frames=0, now=lambda: clock[0])
    audio: asyncio.Queue[int | None] = asyncio.Queue()
    reading = asyncio.create_task(ingest.read(spoken(audio)))
    sent = Sent()
    ingest.send_to(sent)
    for frame in range(60):
        audio.put_nowait(frame)
        await settled()
        clock[0] += 0.08
        if frame % 2:
            ingest.answered()
    audio.put_nowait(None)
    await reading
    assert ingest.frames_skipped > 20
    assert sent.frames[-1].sequence > 50


async def test_a_call_resumed_after_ten_seconds_loses_nothing() -> None:
    """64 frames that the model has heard bring the encoder back, and those of ten seconds come all at once."""
    ingest = Ingest(FORMAT, Heard(), live=True, delay_frames=0, first_sequence=100, next_sequence=164)

    async def silence() -> AsyncIterator[Pcm]:
        for _ in range(64 + 125):
            yield SILENCE

    reading = asyncio.create_task(ingest.read(silence()))
    await settled()
    heard = await drain(ingest)
    await reading
    assert [frame.sequence for frame in heard] == list(range(100, 289))
    assert ingest.frames_skipped == 0


async def test_a_live_call_that_moves_skips_nothing_in_a_mesh_that_is_slow() -> None:
    """Answers come half as fast as speech, since its next rows are stepped beside these."""
    ingest = Ingest(FORMAT, Heard(), live=True, delay_frames=0)
    audio: asyncio.Queue[int | None] = asyncio.Queue()
    reading = asyncio.create_task(ingest.read(spoken(audio)))
    sent = Sent()
    ingest.send_to(sent)
    ingest.catch_up()
    for frame in range(60):
        audio.put_nowait(frame)
        await settled()
        if frame % 2:
            ingest.answered()
    audio.put_nowait(None)
    heard = await answer(ingest, sent, 30)
    await reading
    assert [frame.sequence for frame in heard] == list(range(60))
    assert ingest.frames_skipped == 0
