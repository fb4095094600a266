"""The line and the limits, over gateways that share a real Redis, and without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from moshimesh.gateway.v1 import conversation_pb2

from services.gateway.calls import waiting as line_module
from services.gateway.calls.limits import Limits
from services.gateway.calls.waiting import Line
from services.gateway.store import Store
from services.mesh.errors import LineFull, TooManyCalls
from tests.gateway.redis_server import RedisServer


@pytest.fixture
def server() -> AsyncIterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
async def stores(server: RedisServer) -> AsyncIterator[list[Store]]:
    """Of two gateways."""
    stores = [Store(server.url), Store(server.url)]
    for store in stores:
        await store.connect()
    yield stores
    for store in stores:
        await store.close()


MODEL = "a model"


class Slots:
    """What is free in the mesh."""

    def __init__(self) -> None:
        self.free = 0


async def wait_in(line: Line, name: str, slots: Slots, got: list[str], ahead: bool = False
                  ) -> list[conversation_pb2.Queued]:
    told = []
    async with line.join(MODEL, name, ahead) as place:
        async for queued in place.turns(lambda: slots.free):
            told.append(queued)
        slots.free -= 1
        got.append(name)
        place.served = True
    return told


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module, "POLL_S", 0.03)


async def in_line(lines: list[Line], names: list[str], slots: Slots, got: list[str]
                  ) -> list[asyncio.Task[list[conversation_pb2.Queued]]]:
    tasks = []
    for number, name in enumerate(names):
        tasks.append(asyncio.create_task(wait_in(lines[number % len(lines)], name, slots, got)))
        await asyncio.sleep(0.05)
    return tasks


async def test_first_come_first_served_over_gateways(stores: list[Store]) -> None:
    lines = [Line(store, 10) for store in stores]
    slots, got = Slots(), []
    assert not await lines[0].anybody_waits(MODEL)
    tasks = await in_line(lines, ["a", "b", "c", "d"], slots, got)
    assert await lines[0].anybody_waits(MODEL) and await lines[1].anybody_waits(MODEL)
    urgent = asyncio.create_task(wait_in(lines[1], "cut off", slots, got, ahead=True))
    await asyncio.sleep(0.1)
    assert got == []
    for _ in range(5):
        slots.free += 1
        await asyncio.sleep(0.15)
    told = await asyncio.gather(*tasks)
    await urgent
    assert got == ["cut off", "a", "b", "c", "d"]
    assert [queued.position for queued in told[3]] == [4, 5, 4, 3, 2, 1]
    assert told[3][0].estimated_wait_ms == 0  # nobody had been served yet
    assert 10 < told[3][-1].estimated_wait_ms < 2000
    await asyncio.sleep(0.05)
    assert not await lines[0].anybody_waits(MODEL)


async def test_a_full_line_refuses_all_but_those_who_were_cut_off(stores: list[Store]) -> None:
    lines = [Line(store, 2) for store in stores]
    slots, got = Slots(), []
    tasks = await in_line(lines, ["a", "b"], slots, got)
    with pytest.raises(LineFull) as caught:
        await wait_in(lines[0], "c", slots, got)
    assert caught.value.retry_after_s
    tasks.append(asyncio.create_task(wait_in(lines[0], "cut off", slots, got, ahead=True)))
    await asyncio.sleep(0.1)
    slots.free = 3
    await asyncio.gather(*tasks)
    assert sorted(got) == ["a", "b", "cut off"]


async def test_who_gives_up_leaves_the_line(stores: list[Store]) -> None:
    lines = [Line(store, 10) for store in stores]
    slots, got = Slots(), []
    first, second = await in_line(lines, ["a", "b"], slots, got)
    first.cancel()
    await asyncio.sleep(0.1)
    slots.free = 1
    await second
    assert got == ["b"]


async def test_a_lost_gateways_callers_leave_the_line(stores: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module, "GONE_S", 0.3)
    lines = [Line(store, 10) for store in stores]
    await lines[0].wait(MODEL, "of a gateway that dies now", False)
    slots, got = Slots(), []
    slots.free = 1
    (task,) = await in_line([lines[1]], ["b"], slots, got)
    assert got == []
    await asyncio.wait_for(task, 2)


async def test_without_redis_each_gateway_has_a_line_of_its_own(server: RedisServer, stores: list[Store]) -> None:
    server.kill()
    line = Line(stores[0], 2)
    slots, got = Slots(), []
    tasks = await in_line([line], ["a", "b"], slots, got)
    assert await line.anybody_waits(MODEL)
    with pytest.raises(LineFull):
        await wait_in(line, "c", slots, got)
    for _ in range(2):
        slots.free += 1
        await asyncio.sleep(0.15)
    await asyncio.gather(*tasks)
    assert got == ["a", "b"]


async def test_calls_of_a_key_over_gateways(stores: list[Store]) -> None:
    one, other = (Limits(store, 2) for store in stores)
    async with one.admit("key", "1"), other.admit("key", "2"), one.admit("another key", "3"):
        for limits in (one, other):
            with pytest.raises(TooManyCalls) as caught:
                async with limits.admit("key", "4"):
                    pass
            assert caught.value.retry_after_s
        async with one.admit("", "5"):
            pass
    await asyncio.sleep(0.1)
    async with other.admit("key", "6"), other.admit("key", "7"):
        pass


async def test_a_conversation_that_is_taken_up_again_counts_once(stores: list[Store]) -> None:
    one, other = (Limits(store, 1) for store in stores)
    async with (one.admit("key", "a conversation"), other.admit("key", "a conversation"),
                one.admit("key", "a conversation")):
        with pytest.raises(TooManyCalls):
            async with one.admit("key", "another"):
                pass


async def test_limits_without_redis(server: RedisServer, stores: list[Store]) -> None:
    server.kill()
    limits = Limits(stores[0], 1)
    async with limits.admit("key", "1"):
        with pytest.raises(TooManyCalls):
            async with limits.admit("key", "2"):
                pass
    async with limits.admit("key", "3"):
        pass


async def test_no_limit(server: RedisServer) -> None:
    limits = Limits(Store(server.url), 0)
    async with limits.admit("key", "1"), limits.admit("key", "2"):
        assert not server.client.keys("*")


async def test_redis_does_not_learn_a_key(server: RedisServer, stores: list[Store]) -> None:
    async with Limits(stores[0], 2).admit("a secret key", "1"):
        assert server.client.keys("*") and not any(b"secret" in key for key in server.client.keys("*"))
