"""A gateway that stops asks its calls to leave in turns, within half of the time that it has."""

from __future__ import annotations

import asyncio

import pytest

from services.gateway.calls.events import GoAway, Ready, Summary
from services.gateway.calls.leaving import SHARE_OF_TIME, ask_to_leave
from tests.gateway.house import OPENING, House, spoken
from tests.until import settled, until


class Call:
    """A call that leaves when a test says so."""

    def __init__(self, speaks: bool = True) -> None:
        self.speaks, self.over = speaks, asyncio.Event()
        self.asked: list[float] = []
        self.skips = True
        self.can_be_written, self.is_written = asyncio.Event(), False
        self.can_be_written.set()

    def skip_none(self) -> None:
        self.skips = False

    async def written(self) -> None:
        await self.can_be_written.wait()
        self.is_written = True

    def go_away(self, time_left_s: float) -> None:
        self.asked.append(time_left_s)


async def test_each_is_asked_when_the_one_before_it_has_left() -> None:
    calls = [Call() for _ in range(4)]
    asking = asyncio.create_task(ask_to_leave(calls, 600.0))
    await settled()
    assert not any(call.skips for call in calls)
    for number, call in enumerate(calls):
        await settled()
        assert [len(one.asked) for one in calls] == [1] * (number + 1) + [0] * (3 - number)
        call.over.set()
    await asking
    assert calls[0].asked == [600.0] and 0 < calls[3].asked[0] <= 600.0


async def test_those_in_line_are_asked_at_once_and_those_who_have_left_are_not() -> None:
    speaking, gone, waiting = Call(), Call(), Call(speaks=False)
    gone.over.set()
    asking = asyncio.create_task(ask_to_leave([speaking, gone, waiting], 600.0))
    await settled()
    assert (len(speaking.asked), len(waiting.asked)) == (1, 1)
    speaking.over.set()
    await asking
    assert gone.asked == []


@pytest.mark.parametrize("time_s", [0.0, 0.2])
async def test_callers_that_stay_keep_nobody_from_being_asked(time_s: float) -> None:
    calls = [Call() for _ in range(5)]
    began = asyncio.get_running_loop().time()
    await ask_to_leave(calls, time_s)
    took_s = asyncio.get_running_loop().time() - began
    assert took_s >= time_s * SHARE_OF_TIME
    assert [len(call.asked) for call in calls] == [1] * 5
    assert [call.asked[0] for call in calls] == sorted((call.asked[0] for call in calls), reverse=True)


async def test_a_call_is_asked_when_it_is_written_or_that_takes_too_long() -> None:
    call, slow = Call(), Call()
    call.can_be_written.clear()
    slow.can_be_written.clear()
    asking = asyncio.create_task(ask_to_leave([call, slow], 600.0))
    await settled()
    assert not call.asked
    call.can_be_written.set()
    await until(lambda: call.asked)
    assert call.is_written
    call.over.set()
    await until(lambda: slow.asked)
    assert not slow.is_written
    slow.over.set()
    await asking


async def test_calls_of_a_gateway_that_stops_leave_one_after_another(house: House) -> None:
    over = [asyncio.Event(), asyncio.Event()]
    calls = [house.hold(OPENING, spoken(0, 5, hang_up)) for hang_up in over]
    for call in calls:
        assert isinstance(await anext(call), Ready)
    told: list[list[object]] = [[], []]

    async def listen(number: int) -> None:
        async for event in calls[number]:
            told[number].append(event)

    listening = [asyncio.create_task(listen(number)) for number in range(2)]

    def asked() -> list[int]:
        return [sum(isinstance(event, GoAway) for event in events) for events in told]

    house.desk.drain()
    await until(lambda: sum(asked()) == 1)
    first = asked().index(1)
    await settled()
    assert sum(asked()) == 1
    over[first].set()
    await until(lambda: asked() == [1, 1])
    over[1 - first].set()
    await asyncio.gather(*listening)
    assert all(isinstance(events[-1], Summary) for events in told)
