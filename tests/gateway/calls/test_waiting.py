"""The waiting line, over gateways that share a real Redis, and without it."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.gateway.calls.events import Queued
from services.gateway.calls.waiting import Ticket, WaitingLine
from services.gateway.store import Store
from services.mesh.errors import LineFull
from tests.gateway.redis_server import RedisServer
from tests.until import until

MODEL = "a model"


class Slots:
    """What is free in the mesh, and the callers that have got it, in order."""

    def __init__(self) -> None:
        self.free = 0
        self.got: list[str] = []


class Caller:
    """Waits in a line until there is a slot."""

    def __init__(self, line: WaitingLine, name: str, slots: Slots, ahead: bool = False) -> None:
        self.told: list[Queued] = []
        self.served = asyncio.create_task(self._wait(line, name, slots, ahead))

    async def _wait(self, line: WaitingLine, name: str, slots: Slots, ahead: bool) -> None:
        async with line.join(MODEL, name, ahead) as ticket:
            async for queued in ticket.turns(lambda: slots.free):
                self.told.append(queued)
            slots.free -= 1
            slots.got.append(name)
            ticket.served = True

    async def is_at(self, position: int) -> None:
        """Wait until it is told so."""
        await until(lambda: self.told and self.told[-1].position == position)


def line_over(store: Store, most_waiting: int, gone_s: float = 30.0) -> WaitingLine:
    return WaitingLine(store, most_waiting, poll_s=0.03, gone_s=gone_s)


async def in_line(lines: list[WaitingLine], names: list[str], slots: Slots) -> list[Caller]:
    callers = []
    for number, name in enumerate(names):
        callers.append(Caller(lines[number % len(lines)], name, slots))
        await callers[-1].is_at(number + 1)
    return callers


async def test_first_come_first_served_over_gateways(stores: list[Store]) -> None:
    lines = [line_over(store, 10) for store in stores]
    slots = Slots()
    assert not await lines[0].length(MODEL)
    began = time.monotonic()
    callers = await in_line(lines, ["a", "b", "c", "d"], slots)
    last = callers[-1]
    assert await lines[0].length(MODEL) and await lines[1].length(MODEL)
    callers.append(Caller(lines[1], "cut off", slots, ahead=True))
    await last.is_at(5)
    assert slots.got == []
    for position in (4, 3, 2, 1):
        slots.free += 1
        await last.is_at(position)
    slots.free += 1
    await asyncio.gather(*(caller.served for caller in callers))
    assert slots.got == ["cut off", "a", "b", "c", "d"]
    assert [queued.position for queued in last.told] == [4, 5, 4, 3, 2, 1]
    assert last.told[0].estimated_wait_ms == 0  # nobody had been served yet
    assert 0 < last.told[-1].estimated_wait_ms < (time.monotonic() - began) * 1000
    await until(lambda: nobody_waits(lines[0]))


async def nobody_waits(line: WaitingLine) -> bool:
    return not await line.length(MODEL)


async def test_a_full_line_refuses_all_but_callers_who_were_cut_off(stores: list[Store]) -> None:
    lines = [line_over(store, 2) for store in stores]
    slots = Slots()
    callers = await in_line(lines, ["a", "b"], slots)
    with pytest.raises(LineFull) as caught:
        await Caller(lines[0], "c", slots).served
    assert caught.value.retry_after_s
    callers.append(Caller(lines[0], "cut off", slots, ahead=True))
    await callers[-1].is_at(1)
    slots.free = 3
    await asyncio.gather(*(caller.served for caller in callers))
    assert sorted(slots.got) == ["a", "b", "cut off"]


async def test_a_caller_who_gives_up_leaves_the_line(stores: list[Store]) -> None:
    lines = [line_over(store, 10) for store in stores]
    slots = Slots()
    first, second = await in_line(lines, ["a", "b"], slots)
    first.served.cancel()
    await second.is_at(1)
    slots.free = 1
    await second.served
    assert slots.got == ["b"]


async def test_a_lost_gateways_callers_leave_the_line(stores: list[Store]) -> None:
    lines = [line_over(store, 10, gone_s=1.0) for store in stores]
    await lines[0].ask(Ticket(lines[0], MODEL, "of a gateway that dies now", ahead=False))
    slots = Slots()
    slots.free = 1
    caller = Caller(lines[1], "b", slots)
    await asyncio.wait_for(caller.served, 20)
    assert [queued.position for queued in caller.told] == [2, 1]


async def test_without_redis_each_gateway_has_a_line_of_its_own(server: RedisServer, stores: list[Store]) -> None:
    server.kill()
    line = line_over(stores[0], 2)
    slots = Slots()
    first, second = await in_line([line], ["a", "b"], slots)
    assert await line.length(MODEL)
    with pytest.raises(LineFull):
        await Caller(line, "c", slots).served
    slots.free += 1
    await first.served
    assert slots.got == ["a"]
    slots.free += 1
    await second.served
    assert slots.got == ["a", "b"]


async def test_a_redis_that_refuses_is_none(server: RedisServer, stores: list[Store]) -> None:
    """A full one, or a key of another type. Callers wait as they do without Redis."""
    server.client.set(f"moshimesh:{{line:{MODEL}}}:waiting", "not a sorted set")
    line = line_over(stores[0], 10)
    slots = Slots()
    callers = await in_line([line], ["a", "b"], slots)
    assert await line.length(MODEL)
    slots.free = 2
    await asyncio.gather(*(caller.served for caller in callers))
    assert (slots.got, line.waiting) == (["a", "b"], 0)
