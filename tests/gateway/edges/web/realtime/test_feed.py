"""The client's sound on our clock, which is turned by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from services.gateway.calls.callers import Audio, Interrupt
from services.gateway.edges.web.realtime.feed import AHEAD_S, MUTED_S, PATIENCE_S, RECORDING_SPEED, Feed
from services.gateway.edges.web.realtime.inbox import Inbox
from services.gateway.edges.web.realtime.settings import Format
from services.gateway.edges.web.realtime.sound import ear_of
from tests.gateway.edges.web.realtime.told import FRAME, RATE, Clock

SECOND = 2 * RATE  # bytes of 16 bit PCM


def fed(clock: Clock) -> Feed:
    feed = Feed(ear_of(RATE), FRAME, FRAME / RATE, clock)
    feed.start()
    return feed


def due(feed: Feed) -> list[int]:
    """The lengths of the pieces that are due now."""
    lengths = []
    while not isinstance(piece := feed.next(), float):
        lengths.append(len(piece))
    return lengths


def run(feed: Feed, clock: Clock, seconds: float, sound: bytes = b"", every_s: float = 0.0) -> list[int]:
    """What is handed on in so many seconds of 10 ms, while the client sends this sound every so many seconds."""
    lengths = []
    for tick in range(round(seconds * 100)):
        if sound and tick % round(every_s * 100) == 0:
            feed.take(sound, Format())
        lengths += due(feed)
        clock.seconds += 0.01
    return lengths


def test_sound_is_handed_on_at_once() -> None:
    feed = fed(Clock())
    feed.take(bytes(SECOND // 10), Format())
    assert due(feed) == [RATE // 10]


def test_sound_comes_out_as_it_came_in() -> None:
    feed = fed(Clock())
    sound = np.arange(-5000, 5000, dtype="<i2")
    feed.take(sound.tobytes(), Format())
    piece = feed.next()
    assert isinstance(piece, np.ndarray) and np.array_equal(np.rint(piece * 32768), sound)


def test_small_messages_are_collected() -> None:
    """Browsers' worklets send 5 ms at a time."""
    clock = Clock()
    lengths = run(fed(clock), clock, 1.0, bytes(SECOND // 100), 0.01)
    assert sum(lengths) >= RATE * 0.97 and min(lengths) >= RATE // 50


def test_a_message_that_cuts_a_sample() -> None:
    feed = fed(Clock())
    sound = np.arange(2000, dtype="<i2").tobytes()
    feed.take(sound[:1001], Format())
    feed.take(sound[1001:], Format())
    piece = feed.next()
    assert isinstance(piece, np.ndarray) and np.array_equal(np.rint(piece * 32768), np.arange(2000))


def test_a_recording_is_handed_on_about_as_fast_as_it_was_spoken() -> None:
    clock = Clock()
    feed = fed(clock)
    feed.take(bytes(20 * SECOND), Format())
    assert sum(due(feed)) / RATE == pytest.approx(2 * AHEAD_S, abs=0.2)
    handed = sum(run(feed, clock, 5.0)) / RATE
    assert handed == pytest.approx(5.0 * RECORDING_SPEED, abs=0.4)


def test_a_recording_in_small_messages_is_one_too() -> None:
    """Scripts send a file in pieces of 100 ms, as fast as they can."""
    clock = Clock()
    feed, handed = fed(clock), 0
    for _ in range(100):
        feed.take(bytes(SECOND // 10), Format())
        handed += sum(due(feed))
        clock.seconds += 0.001
    assert handed / RATE < 1.5
    assert (handed + sum(run(feed, clock, 4.0))) / RATE == pytest.approx(4.0 * RECORDING_SPEED, abs=0.5)


def test_a_live_client_s_sound_is_not_held_back() -> None:
    """After a stall of the network everything comes at once; a live call skips to the present."""
    clock = Clock()
    feed = fed(clock)
    run(feed, clock, 2.0, bytes(SECOND // 10), 0.1)
    clock.seconds += 1.5
    for _ in range(15):
        feed.take(bytes(SECOND // 10), Format())
    lengths = due(feed)
    assert sum(lengths) == 1.5 * RATE and max(lengths) <= RATE


def test_a_live_client_that_was_taken_for_a_recording_catches_up() -> None:
    """After a longer stall than networks usually have."""
    clock = Clock()
    feed = fed(clock)
    run(feed, clock, 2.0, bytes(SECOND // 10), 0.1)
    clock.seconds += 4.0
    for _ in range(40):
        feed.take(bytes(SECOND // 10), Format())
    run(feed, clock, 20.0, bytes(SECOND // 10), 0.1)
    assert len(feed._waiting) <= SECOND // 10


def test_a_client_that_stops_sending_gets_silence() -> None:
    clock = Clock()
    feed = fed(clock)
    run(feed, clock, 1.0, bytes(SECOND // 10), 0.1)
    seconds = sum(run(feed, clock, 10.0)) / RATE
    assert seconds == pytest.approx(10.0, abs=PATIENCE_S + 0.1)


def test_a_client_that_never_sends_gets_silence() -> None:
    clock = Clock()
    feed = fed(clock)
    assert sum(run(feed, clock, 5.0)) / RATE == pytest.approx(5.0, abs=PATIENCE_S + 0.1)


def test_silence_comes_frame_by_frame() -> None:
    clock = Clock()
    assert set(run(fed(clock), clock, 5.0)) == {FRAME}


def test_a_client_in_time_gets_no_silence() -> None:
    clock = Clock()
    assert sum(run(fed(clock), clock, 10.0, bytes(SECOND // 10), 0.1)) == 10 * RATE


def test_a_client_that_sends_in_bursts_is_waited_for() -> None:
    """Pipecat sends half a second at a time. Its first pause is taken for the end; from then on it is known."""
    clock = Clock()
    feed = fed(clock)
    run(feed, clock, 2.0, bytes(SECOND // 2), 0.5)
    assert sum(run(feed, clock, 10.0, bytes(SECOND // 2), 0.5)) == 10 * RATE


def test_a_client_that_has_forgotten_its_call_gets_nothing_any_more() -> None:
    """The desk ends it then, as it ends any caller that is idle."""
    clock = Clock()
    feed = fed(clock)
    clock.seconds += MUTED_S + 1
    assert due(feed) == []
    feed.take(bytes(SECOND // 10), Format())
    assert due(feed) == [RATE // 10]


def test_the_clock_begins_when_the_mesh_listens() -> None:
    """A client that has waited in line for ten minutes has not been silent for ten minutes."""
    clock = Clock()
    feed = Feed(ear_of(RATE), FRAME, FRAME / RATE, clock)
    clock.seconds += 600
    feed.start()
    assert due(feed) == [] and sum(run(feed, clock, 2.0)) > RATE


# The desk's end of it.


async def test_controls_are_handed_on_at_once() -> None:
    inbox = Inbox(Feed(ear_of(RATE), FRAME, FRAME / RATE))
    inputs = inbox.inputs()
    given: asyncio.Task[Any] = asyncio.ensure_future(anext(inputs))
    await asyncio.sleep(0)
    inbox.direct(Interrupt())
    assert await given == Interrupt()
    await inputs.aclose()


async def test_sound_wakes_the_desk() -> None:
    inbox = Inbox(Feed(ear_of(RATE), FRAME, FRAME / RATE))
    inputs = inbox.inputs()
    given: asyncio.Task[Any] = asyncio.ensure_future(anext(inputs))
    await asyncio.sleep(0)
    inbox.take(bytes(SECOND // 10), Format())
    piece = await given
    assert isinstance(piece, Audio) and len(piece.pcm) == RATE // 10
    await inputs.aclose()


async def test_silence_comes_by_itself() -> None:
    inputs = Inbox(Feed(ear_of(RATE), FRAME, FRAME / RATE)).inputs()
    piece = await anext(inputs)
    assert isinstance(piece, Audio) and not piece.pcm.any()
    await inputs.aclose()
