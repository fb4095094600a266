"""Events on their way to the caller: with the speech at which they were certain, and once if the call is cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np
import pytest

from services.gateway.calls.callers import Audio, Opening, Resumed
from services.gateway.calls.events import ConversationEvent, Event, EventKind, Ready, Speech, Summary
from tests.gateway.fake_codec import CODEBOOKS, FRAME, FakeCodec
from tests.gateway.house import OPENING, House
from tests.gateway.redis_server import RedisServer
from tests.until import until

SILENCE, SPEECH = 0, 1  # the second code of a frame of zeros, and of ones
TALK = "....######..........####"
STARTED, STOPPED = EventKind.USER_SPEECH_STARTED, EventKind.USER_SPEECH_STOPPED
WANTED = [(STARTED, 4, 320, 6), (STOPPED, 10, 800, 15), (STARTED, 20, 1600, 22)]


def table() -> bytes:
    """A frame of ones is speech, all others are not."""
    entries = np.full((CODEBOOKS, 64), -120, np.int8)
    entries[0], entries[1, SPEECH] = 0, 120
    return entries.tobytes()


@pytest.fixture
async def house(redis_server: RedisServer) -> AsyncIterator[House]:
    codec = FakeCodec()
    codec.speech_table = table()
    async with House(redis_server.url, codec=codec) as opened:
        yield opened


async def spoken(first: int, then: asyncio.Event | None = None) -> AsyncIterator[Audio]:
    for letter in TALK[first:]:
        yield Audio(np.full(FRAME, SPEECH if letter == "#" else SILENCE, np.float32))
    if then is not None:
        await then.wait()


def told(events: list[Event]) -> list[tuple[EventKind, int, int, int]]:
    """What happened to the user: kind, frame, milliseconds, and the frame of the speech that comes next."""
    found = []
    for at, event in enumerate(events):
        if isinstance(event, ConversationEvent) and event.kind in (STARTED, STOPPED):
            after = next(one for one in events[at:] if isinstance(one, Speech))
            found.append((event.kind, event.sequence, event.at_ms, after.context.sequence))
    return found


async def test_an_event_comes_right_before_the_speech_of_the_frame_at_which_it_was_certain(house: House) -> None:
    events = [event async for event in house.hold(OPENING, spoken(0))]
    assert told(events) == WANTED
    assert isinstance(events[-1], Summary)
    assert [kind for kind in house.observers[0].events if kind in (STARTED, STOPPED)] == [STARTED, STOPPED, STARTED]


@pytest.mark.parametrize("answers", [2, 5, 6, 8, 14, 15, 18])
async def test_a_call_that_is_resumed_tells_each_event_once_and_misses_no_stop(house: House, answers: int) -> None:
    heard: list[Event] = []
    async with contextlib.aclosing(house.hold(OPENING, spoken(0, asyncio.Event()))) as events:
        async for event in events:
            heard.append(event)
            if isinstance(event, Speech) and event.context.sequence == answers:
                break
    await until(lambda: not house.sessions._live)
    ready = heard[0]
    assert isinstance(ready, Ready)
    opening = Opening(Resumed(ready.resume_handle, answers + 1, answers), live=False)
    heard += [event async for event in house.hold(opening, spoken(answers + 1))]
    assert told(heard) == WANTED


async def test_a_codec_that_knows_no_speech_tells_nothing_of_the_user(house: House) -> None:
    house.codec.speech_table = b""
    assert told([event async for event in house.hold(OPENING, spoken(0))]) == []
