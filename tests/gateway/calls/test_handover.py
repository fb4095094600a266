"""A call that moves to another gateway: that one opens its rows while the old call goes on, and only then takes it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from services.gateway.calls.callers import Audio, Input, Interrupt, Opening, PastAhead, Resumed
from services.gateway.calls.events import Event, GoAway, Queued, Ready, Speech, Summary
from services.gateway.calls.past import take_past
from services.gateway.path.audio import AudioFormat
from services.gateway.sessions.records import keys_of
from services.gateway.sessions.sealing import Handle
from services.mesh.errors import InvalidRequest, ResumeUnavailable, SessionMoved
from tests.gateway.fake_codec import FRAME, RATE, FakeCodec
from tests.gateway.fake_lm import DELAY
from tests.gateway.house import FRAMES, OPENING, House, cut_off, expected, frame, spoken
from tests.gateway.redis_server import RedisServer
from tests.until import until

ANSWERS = 10


class Call:
    """A call that has been answered some frames, says the next when it is let, and goes on until it is done."""

    def __init__(self, house: House) -> None:
        self.more, self.over = asyncio.Event(), asyncio.Event()
        self.events = house.hold(OPENING, self._speak())
        self.said: list[Event] = []

    async def _speak(self) -> AsyncIterator[Input]:
        for number in range(ANSWERS + DELAY):
            yield Audio(frame(number))
        await self.more.wait()
        for number in range(ANSWERS + DELAY, FRAMES):
            yield Audio(frame(number))
        await self.over.wait()

    async def begin(self, house: House) -> Ready:
        ready = await anext(self.events)
        assert isinstance(ready, Ready)
        while sum(isinstance(event, Speech) for event in self.said) < ANSWERS:
            self.said.append(await anext(self.events))
        await until(lambda: house.sessions.lag_s == 0)
        return ready

    async def rest(self) -> list[Event]:
        self.more.set()
        self.over.set()
        self.said += [event async for event in self.events]
        return self.said


def moved(ready: Ready, past: int = 0, answered: int = ANSWERS + DELAY - 1) -> Opening:
    """What the caller asks another gateway for, with some audio ahead."""
    return Opening(Resumed(ready.resume_handle, answered + 1 - past, answered,
                           past=PastAhead(past, RATE) if past else None), live=False)


def tokens(events: Sequence[Event]) -> list[list[int]]:
    return [[event.text_token, *event.codes] for event in events if isinstance(event, Speech)]


def held(house: House) -> int:
    return house.lm.held + sum(house.codec.held.values())


def owner(server: RedisServer, ready: Ready) -> list[bytes | None]:
    record, _ = keys_of(Handle(ready.resume_handle).name)
    found: list[bytes | None] = server.client.hmget(record, "owner", "fence")
    return found


async def test_a_move_that_is_given_up_gives_its_slots_back_and_leaves_the_call_alone(
        house: House, redis_server: RedisServer) -> None:
    """So is one whose gateway is killed before it has taken the session over."""
    call = Call(house)
    async with House(redis_server.url) as there:
        ready = await call.begin(house)
        before = owner(redis_server, ready)
        there.lm.opening_until.clear()
        moving = asyncio.ensure_future(anext(there.hold(moved(ready), spoken(0, 0))))
        await until(lambda: held(there) == 3)
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)
        await until(lambda: held(there) == 0)
        said = await call.rest()
        assert owner(redis_server, ready)[1] == before[1]
        assert isinstance(said[-1], Summary) and tokens(said) == expected(FRAMES)
        assert there.sessions.open == 0


async def test_a_move_that_comes_too_late_gives_its_slots_back(house: House, redis_server: RedisServer) -> None:
    """Two gateways open rows for one session; the one that is second to take it over has nothing."""
    ready, _ = await cut_off(house, ANSWERS)
    async with House(redis_server.url) as slow, House(redis_server.url) as quick:
        slow.lm.opening_until.clear()
        late = asyncio.ensure_future(anext(slow.hold(moved(ready), spoken(0, 0))))
        await until(lambda: held(slow) == 3)
        going_on = quick.hold(moved(ready), spoken(ANSWERS + DELAY, FRAMES))
        assert isinstance(await anext(going_on), Ready)
        slow.lm.opening_until.set()
        with pytest.raises(ResumeUnavailable):
            await late
        await until(lambda: held(slow) == 0)
        assert slow.sessions.open == 0
        assert isinstance([event async for event in going_on][-1], Summary)


async def test_a_session_that_has_ended_meanwhile_is_not_taken_over(house: House, redis_server: RedisServer) -> None:
    call = Call(house)
    async with House(redis_server.url) as there:
        ready = await call.begin(house)
        there.lm.opening_until.clear()
        late = asyncio.ensure_future(anext(there.hold(moved(ready), spoken(0, 0))))
        await until(lambda: held(there) == 3)
        await call.rest()
        await until(lambda: not house.sessions._live)
        there.lm.opening_until.set()
        with pytest.raises(ResumeUnavailable):
            await late
        await until(lambda: held(there) == 0)


async def test_a_call_goes_on_while_it_is_moved_and_has_one_owner_at_a_time(
        house: House, redis_server: RedisServer) -> None:
    """What the old call says and writes while the new rows are opened is said again, with the same tokens."""
    call = Call(house)
    async with House(redis_server.url) as there:
        ready = await call.begin(house)
        first = owner(redis_server, ready)
        there.lm.opening_until.clear()
        new = there.hold(moved(ready), spoken(ANSWERS + DELAY, FRAMES))
        opening = asyncio.ensure_future(anext(new))
        await until(lambda: held(there) == 3)
        call.more.set()
        while len(tokens(call.said)) < FRAMES - DELAY:
            call.said.append(await anext(call.events))
        await until(lambda: house.sessions.lag_s == 0)
        assert owner(redis_server, ready) == first and not opening.done()
        there.lm.opening_until.set()
        assert isinstance(await opening, Ready)
        assert owner(redis_server, ready) == [there.sessions._owner.encode(), b"2"]
        with pytest.raises(SessionMoved):
            async for _ in call.events:
                pass
        again = [event async for event in new]
        assert tokens(call.said)[:ANSWERS] + tokens(again) == expected(FRAMES)
        assert tokens(call.said) == expected(FRAMES)[:FRAMES - DELAY]


async def test_a_call_that_was_asked_to_leave_answers_until_the_new_one_has_caught_up(
        house: House, redis_server: RedisServer) -> None:
    call = Call(house)
    async with House(redis_server.url) as there:
        ready = await call.begin(house)
        house.desk.drain()
        assert isinstance(await anext(call.events), GoAway)
        new = there.hold(moved(ready), spoken(ANSWERS + DELAY, FRAMES))
        assert isinstance(await anext(new), Ready)
        await until(lambda: house.sessions.open == 0)  # it knows that the session is another's
        call.more.set()
        with pytest.raises(SessionMoved):
            async for event in call.events:
                call.said.append(event)
        assert tokens(call.said) == expected(FRAMES)[:FRAMES - DELAY]
        assert isinstance([event async for event in new][-1], Summary)


async def test_a_call_that_has_the_last_slots_gives_them_to_its_own_move(house: House) -> None:
    house.lm.slots = 1
    call = Call(house)
    ready = await call.begin(house)
    await house.fleet.refresh()
    new = house.hold(moved(ready), spoken(ANSWERS + DELAY, FRAMES))
    assert isinstance(await anext(new), Queued)
    with pytest.raises(SessionMoved):
        async for _ in call.events:
            pass
    assert tokens(call.said) + tokens([event async for event in new]) == expected(FRAMES)


@pytest.mark.parametrize("past", [1, 4, ANSWERS + DELAY])
async def test_the_encoder_is_opened_with_the_audio_that_comes_ahead(redis_server: RedisServer, past: int) -> None:
    async with House(redis_server.url, codec=FakeCodec(priming_frames=20)) as house:
        ready, said = await cut_off(house, ANSWERS)
        last = said[-1].context.sequence
        house.codec.encoded = 0
        opening, first = moved(ready, past, last), last + 1 - past
        events = [event async for event in house.hold(opening, spoken(first, FRAMES))]
        assert tokens([*said, *events]) == expected(FRAMES)
        assert house.codec.encoded == FRAMES + DELAY - (last + 1)  # none of the past once more
        heard = [frame(number) for number in range(max(first, 1), last + 1)]  # it was cleared after the first of all
        assert np.array_equal(house.codec.pasts[-1], heard)
        summary = events[-1]
        assert isinstance(summary, Summary) and (summary.frames_in, summary.frames_skipped) == (FRAMES - last - 1, 0)


@pytest.mark.parametrize("asked", [PastAhead(8, RATE + 1), PastAhead(8, RATE)])
async def test_audio_that_a_row_can_not_be_opened_with_is_heard_frame_by_frame(
        redis_server: RedisServer, asked: PastAhead) -> None:
    """It has another rate, or there is more of it than the codec takes."""
    async with House(redis_server.url, codec=FakeCodec(priming_frames=7)) as house:
        ready, said = await cut_off(house, ANSWERS)
        last = said[-1].context.sequence
        opening = Opening(Resumed(ready.resume_handle, last - 7, last, past=asked), live=False)
        events = [event async for event in house.hold(opening, spoken(last - 7, FRAMES))]
        assert tokens([*said, *events]) == expected(FRAMES) and not house.codec.pasts


async def test_frames_that_the_journal_has_lost_are_heard_though_they_came_ahead(redis_server: RedisServer) -> None:
    """A killed gateway has not written its last half second; what it had answered then, the caller skips."""
    async with House(redis_server.url, codec=FakeCodec(priming_frames=20)) as house:
        ready, said = await cut_off(house, ANSWERS)
        last = said[-1].context.sequence
        events = [event async for event in house.hold(moved(ready, 9, last + 4), spoken(last - 4, FRAMES))]
        repeated = [event for event in events if isinstance(event, Speech) and event.context.sequence <= last + 4]
        assert isinstance(events[0], Ready) and events[0].next_sequence >= last + 1
        assert len(house.codec.pasts[-1]) == events[0].next_sequence - (last - 4)
        assert tokens(events)[-1] == expected(FRAMES)[-1] and len(repeated) == last + 5 - events[0].next_sequence


PIECES = [np.arange(begin, begin + 6, dtype=np.float32) for begin in range(0, 24, 6)]


async def inputs(*given: Input) -> AsyncIterator[Input]:
    for one in given:
        yield one


async def test_what_comes_after_the_past_is_not_lost() -> None:
    audio = AudioFormat(RATE, FRAME)
    past, rest = await take_past(inputs(*map(Audio, PIECES), Interrupt()), audio, 2)
    assert np.array_equal(np.concatenate(past), np.arange(16)) and [len(one) for one in past] == [FRAME, FRAME]
    left = [given async for given in rest]
    assert np.array_equal(left[0].pcm, [16, 17]) and np.array_equal(left[1].pcm, PIECES[3])  # type: ignore[union-attr]
    assert left[2] == Interrupt()


@pytest.mark.parametrize("end", [(), (Interrupt(),)])
async def test_the_past_ends_where_the_audio_does(end: tuple[Input, ...]) -> None:
    past, rest = await take_past(inputs(Audio(PIECES[0]), Audio(PIECES[1]), *end), AudioFormat(RATE, FRAME), 5)
    assert np.array_equal(past, [np.arange(8)])
    left = [given async for given in rest]
    assert np.array_equal(left[0].pcm, np.arange(8, 12)) and left[1:] == list(end)  # type: ignore[union-attr]


async def test_a_past_that_is_no_audio_is_refused_and_takes_nothing(redis_server: RedisServer) -> None:
    async with House(redis_server.url, codec=FakeCodec(priming_frames=20)) as house:
        ready, _ = await cut_off(house, ANSWERS)
        before = owner(redis_server, ready)
        with pytest.raises(InvalidRequest):
            async with contextlib.aclosing(house.hold(
                    moved(ready, 4), inputs(Audio(np.full(FRAME, np.nan, np.float32))))) as events:
                await anext(events)
        assert (owner(redis_server, ready), held(house)) == (before, 0)
