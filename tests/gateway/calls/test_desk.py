"""Whole conversations without a wire: what every edge can rely on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import Audio, New, Opening, Resumed
from services.gateway.calls.events import GoAway, Queued, Ready, Speech, Summary
from services.gateway.sessions.sealing import Handle
from services.mesh.errors import (
    CallTooLong,
    Draining,
    IdleCaller,
    InvalidRequest,
    LineFull,
    MeshError,
    SessionMoved,
    TooManyCalls,
    TooManyResumes,
    UnknownSession,
)
from tests.gateway.fake_codec import FRAME, RATE, codes_of
from tests.gateway.fake_lm import DELAY, Checksum
from tests.gateway.house import House, frame
from tests.gateway.redis_server import RedisServer
from tests.until import until

OPENING = Opening(New(lm_pb2.Sampling(seed=1)), RATE, live=False)
FRAMES = 30


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
async def house(redis_server: RedisServer) -> AsyncIterator[House]:
    async with House(redis_server.url) as house:
        yield house


def expected(frames: int) -> list[list[int]]:
    """What the model answers to so many frames, and to the silence that flushes its delay line."""
    model = Checksum()
    said = [model.step(codes_of(frame(number))) for number in range(frames)]
    said += [model.step(codes_of(np.zeros(FRAME))) for _ in range(DELAY)]
    return [tokens for tokens in said if tokens is not None]


async def spoken(first: int, last: int, then: asyncio.Event | None = None) -> AsyncIterator[Audio]:
    """The caller's frames of these numbers, one a piece; then silence on the wire until an event comes."""
    for number in range(first, last):
        yield Audio(frame(number))
    if then is not None:
        await then.wait()


async def test_a_whole_conversation(house: House) -> None:
    events = [event async for event in house.hold(OPENING, spoken(0, FRAMES))]
    ready, *speech, summary = events
    assert isinstance(ready, Ready)
    assert (ready.model_id, ready.sample_rate_hertz, ready.samples_per_frame) == ("checksum", RATE, FRAME)
    assert ready.sampling == lm_pb2.Sampling(seed=1) and ready.next_sequence == 0
    assert all(isinstance(one, Speech) for one in speech)
    assert [[one.text_token, *one.codes] for one in speech] == expected(FRAMES)
    assert all(one.pcm.dtype == np.float32 and one.pcm[:2].tolist() == one.codes for one in speech)
    assert [one.context.sequence for one in speech] == list(range(DELAY, FRAMES + DELAY))
    assert summary == Summary(frames_in=FRAMES, frames_out=FRAMES, frames_skipped=0)
    (heard,) = house.observers
    assert heard.facts == [("opened", ready.session_id, "checksum", 80_000_000), ("ended", "completed")]
    assert heard.sequences == list(range(FRAMES + DELAY)) == [context.sequence for context in heard.contexts]
    assert heard.seconds == pytest.approx(FRAMES * 0.08)
    await until(lambda: house.lm.held == sum(house.codec.held.values()) == 0)


async def cut_off(house: House, answers: int, opening: Opening = OPENING) -> tuple[Ready, list[Speech]]:
    """A call that the caller's network ends after so many answers."""
    said: list[Speech] = []
    async with contextlib.aclosing(house.hold(opening, spoken(0, FRAMES, asyncio.Event()))) as events:
        async for event in events:
            if isinstance(event, Ready):
                ready = event
            elif isinstance(event, Speech):
                said.append(event)
                if len(said) == answers:
                    break
    await until(lambda: not house.sessions._live)  # its last record is in Redis
    return ready, said


@pytest.mark.parametrize("another", [False, True])
async def test_a_call_that_was_cut_off_goes_on(house: House, redis_server: RedisServer, another: bool) -> None:
    ready, said = await cut_off(house, 10)
    async with House(redis_server.url) if another else contextlib.nullcontext(house) as there:
        last = said[-1].context.sequence
        opening = Opening(Resumed(ready.resume_handle, last + 1, last), RATE, live=False)
        events = [event async for event in there.hold(opening, spoken(last + 1, FRAMES))]
        assert isinstance(events[0], Ready) and events[0].session_id == ready.session_id
        said += [event for event in events if isinstance(event, Speech)]
        assert [[one.text_token, *one.codes] for one in said] == expected(FRAMES)
        assert ("resumed", last + 1) in there.observers[-1].facts
    assert house.observers[0].facts[-1] == ("ended", "cancelled")


async def test_a_refused_resume_leaves_the_live_call_alone(house: House, redis_server: RedisServer) -> None:
    """Whoever asks with a wrong rate, or for a frame that is forgotten, has taken nothing from the call that speaks."""
    hang_up = asyncio.Event()
    said: list[Speech] = []
    async with House(redis_server.url) as another, contextlib.aclosing(
            house.hold(OPENING, spoken(0, FRAMES, hang_up))) as events:
        ready = await anext(events)
        assert isinstance(ready, Ready)
        said.append(await anext(events))
        await until(lambda: house.sessions.lag_s == 0.0)
        for there in (house, another):
            with pytest.raises(InvalidRequest) as caught:
                await anext(there.hold(Opening(Resumed(ready.resume_handle), RATE + 1), spoken(0, 1)))
            assert caught.value.reason == "BAD_SAMPLE_RATE"
        hang_up.set()
        said += [event async for event in events if isinstance(event, Speech)]
    assert [[one.text_token, *one.codes] for one in said] == expected(FRAMES)


async def test_a_call_that_lasted_as_long_as_it_may_is_not_resumed_and_not_deleted(
        house: House, redis_server: RedisServer) -> None:
    """An age that is impossible here, as after a wrong setting: another gateway can still resume the call."""
    ready, said = await cut_off(house, 10)
    last = said[-1].context.sequence
    opening = Opening(Resumed(ready.resume_handle, last + 1, last), RATE, live=False)
    async with House(redis_server.url, longest_call_s=1e-9) as strict:
        with pytest.raises(CallTooLong):
            await anext(strict.hold(opening, spoken(last + 1, FRAMES)))
    events = [event async for event in house.hold(opening, spoken(last + 1, FRAMES))]
    assert isinstance(events[-1], Summary)


async def test_what_a_conversation_can_t_be_opened_with(house: House) -> None:
    for opening, reason in (
            (Opening(New(), RATE + 1), "BAD_SAMPLE_RATE"),
            (Opening(Resumed("no handle"), RATE), UnknownSession.reason),
            (Opening(Resumed("A" * 43), RATE), UnknownSession.reason),
            (Opening(Resumed("A" * 43, first_sequence=1 << 30), RATE), "BAD_SEQUENCE"),
            (Opening(Resumed("A" * 43, answered_sequence=1 << 30), RATE), "BAD_SEQUENCE")):
        with pytest.raises(MeshError) as caught:
            await anext(house.hold(opening, spoken(0, 1)))
        assert caught.value.reason == reason
    assert house.lm.held == 0


async def test_what_goes_wrong_with_the_caller_s_audio_ends_the_call_with_that(house: House) -> None:
    async def bad() -> AsyncIterator[Audio]:
        yield Audio(frame(0))
        raise InvalidRequest("BAD_PCM", "not audio at all")

    with pytest.raises(InvalidRequest, match="not audio at all"):
        async for _ in house.hold(OPENING, bad()):
            pass
    assert house.observers[0].facts[-1] == ("ended", "BAD_PCM")
    await until(lambda: house.lm.held == 0)


async def test_a_gateway_that_stops(house: House) -> None:
    over = asyncio.Event()
    held = house.hold(OPENING, spoken(0, 5, over))
    assert isinstance(await anext(held), Ready)
    house.desk.drain()
    with pytest.raises(Draining):
        await anext(house.hold(OPENING, spoken(0, 1)))
    over.set()
    told = [event async for event in held]
    assert [event.time_left_s for event in told if isinstance(event, GoAway)] == [5.0]
    assert isinstance(told[-1], Summary)


async def test_callers_beyond_the_slots_wait_in_line(house: House) -> None:
    house.lm.slots = 1
    over = asyncio.Event()
    first = house.hold(OPENING, spoken(0, 1, over))
    assert isinstance(await anext(first), Ready)
    await house.fleet.refresh()
    second = house.hold(OPENING, spoken(0, 1))
    assert await anext(second) == Queued(position=1, estimated_wait_ms=0)
    with pytest.raises(LineFull):
        await anext(house.hold(OPENING, spoken(0, 1)))
    over.set()
    assert isinstance([event async for event in first][-1], Summary)
    rest = [event async for event in second]
    assert isinstance(rest[0], Ready) and isinstance(rest[-1], Summary)


async def test_a_stopping_gateway_sends_away_those_who_wait(house: House) -> None:
    house.lm.slots = 1
    over = asyncio.Event()
    first = house.hold(OPENING, spoken(0, 1, over))
    await anext(first)
    await house.fleet.refresh()
    waiting = house.hold(OPENING, spoken(0, 1))
    assert isinstance(await anext(waiting), Queued)
    house.desk.drain()
    with pytest.raises(Draining):
        await anext(waiting)
    over.set()
    async for _ in first:
        pass


async def test_a_resumed_call_takes_itself_from_the_one_that_lingers(house: House, redis_server: RedisServer) -> None:
    lingering = house.hold(OPENING, spoken(0, 5, asyncio.Event()))
    ready = await anext(lingering)
    assert isinstance(ready, Ready)
    await until(lambda: redis_server.client.keys(f"*{Handle(ready.resume_handle).name}*:session"))
    resumed = house.hold(Opening(Resumed(ready.resume_handle), RATE, live=False), spoken(5, 6))
    assert isinstance(await anext(resumed), Ready)
    with pytest.raises(SessionMoved):
        async for _ in lingering:
            pass
    assert isinstance([event async for event in resumed][-1], Summary)


async def test_resuming_has_a_rate(house: House) -> None:
    opening = Opening(Resumed("A" * 43), RATE)
    reasons = []
    for _ in range(30):
        with pytest.raises(MeshError) as caught:
            await anext(house.hold(opening, spoken(0, 1)))
        reasons.append(caught.value.reason)
    assert reasons[:5] == [UnknownSession.reason] * 5 and reasons[-1] == TooManyResumes.reason
    assert caught.value.retry_after_s


async def test_slots_belong_to_those_who_talk(redis_server: RedisServer) -> None:
    async with House(redis_server.url, idle_s=0.3) as house:
        with pytest.raises(IdleCaller):
            async for _ in house.hold(OPENING, spoken(0, 1, asyncio.Event())):
                pass


async def test_no_call_lasts_for_ever(redis_server: RedisServer) -> None:
    async with House(redis_server.url, longest_call_s=0.3) as house:
        held = house.hold(OPENING, spoken(0, 1, asyncio.Event()))
        ready = await anext(held)
        assert isinstance(ready, Ready)
        with pytest.raises(CallTooLong):
            async for _ in held:
                pass
        await until(lambda: house.sessions.lag_s == 0)
        await house.sessions.close()
        with pytest.raises(UnknownSession):
            await anext(house.hold(Opening(Resumed(ready.resume_handle), RATE), spoken(0, 1)))


async def test_calls_of_a_key_are_counted(redis_server: RedisServer) -> None:
    async with House(redis_server.url, calls_per_key=1) as house:
        over = asyncio.Event()
        first = house.hold(OPENING, spoken(0, 1, over))
        assert isinstance(await anext(first), Ready)
        with pytest.raises(TooManyCalls):
            await anext(house.hold(OPENING, spoken(0, 1)))
        assert house.observers[-1].facts == [("ended", "TOO_MANY_CALLS")]
        over.set()
        async for _ in first:
            pass
        while True:  # the first one's place is given back in the background
            with contextlib.suppress(TooManyCalls):
                assert isinstance([event async for event in house.hold(OPENING, spoken(0, 1))][-1], Summary)
                break


async def test_what_the_mesh_serves(house: House) -> None:
    info = await house.desk.info()
    assert (info.model_id, info.sample_rate_hertz, info.samples_per_frame) == ("checksum", RATE, FRAME)
    assert (info.slots_total, info.slots_free) == (8, 8)
