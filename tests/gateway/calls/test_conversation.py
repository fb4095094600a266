"""One conversation, from the line to its end, without a wire: what befalls it and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from services.gateway.calls.callers import Audio, Opening, Resumed
from services.gateway.calls.events import Queued, Ready, Speech, Summary
from services.gateway.sessions.sealing import Handle
from services.mesh.errors import (
    CallTooLong,
    Draining,
    IdleCaller,
    InvalidRequest,
    LineFull,
    SessionMoved,
    UnknownSession,
)
from tests.gateway.house import FRAMES, OPENING, House, cut_off, expected, frame, spoken
from tests.gateway.redis_server import RedisServer
from tests.until import until


@pytest.mark.parametrize("another", [False, True])
async def test_a_call_that_was_cut_off_goes_on(house: House, redis_server: RedisServer, another: bool) -> None:
    ready, said = await cut_off(house, 10)
    async with House(redis_server.url) if another else contextlib.nullcontext(house) as there:
        last = said[-1].context.sequence
        opening = Opening(Resumed(ready.resume_handle, last + 1, last), live=False)
        events = [event async for event in there.hold(opening, spoken(last + 1, FRAMES))]
        assert isinstance(events[0], Ready) and events[0].session_id == ready.session_id
        said += [event for event in events if isinstance(event, Speech)]
        assert [[one.text_token, *one.codes] for one in said] == expected(FRAMES)
        assert ("resumed", last + 1) in there.observers[-1].facts
    assert house.observers[0].facts[-1] == ("ended", "cancelled")


async def test_what_goes_wrong_with_the_caller_s_audio_ends_the_call_with_that(house: House) -> None:
    async def bad() -> AsyncIterator[Audio]:
        yield Audio(frame(0))
        raise InvalidRequest("BAD_PCM", "not audio at all")

    with pytest.raises(InvalidRequest, match="not audio at all"):
        async for _ in house.hold(OPENING, bad()):
            pass
    assert house.observers[0].facts[-1] == ("ended", "BAD_PCM")
    await until(lambda: house.lm.held == 0)


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
    resumed = house.hold(Opening(Resumed(ready.resume_handle), live=False), spoken(5, 6))
    assert isinstance(await anext(resumed), Ready)
    with pytest.raises(SessionMoved):
        async for _ in lingering:
            pass
    assert isinstance([event async for event in resumed][-1], Summary)


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
            await anext(house.hold(Opening(Resumed(ready.resume_handle)), spoken(0, 1)))


