"""The edge over a real desk: slots, the line, and a gateway that stops."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from services.gateway.edges.web.realtime.edge import RealtimeEdge
from tests.gateway.edges.web.realtime.client import Client
from tests.gateway.edges.web.realtime.scripted import KeyGate, listening
from tests.gateway.fake_lm import FakeLm
from tests.gateway.house import House
from tests.gateway.redis_server import RedisServer
from tests.until import until


@pytest.fixture
async def house(redis_server: RedisServer) -> AsyncIterator[House]:
    async with House(redis_server.url, lm=FakeLm(slots=1)) as house:
        yield house


@pytest.fixture
async def url(house: House) -> AsyncIterator[str]:
    async with listening(lambda sockets: RealtimeEdge(house.desk, KeyGate(), sockets, 3600.0)) as http:
        yield f"{http}/v1/realtime"


async def test_a_client_that_says_nothing_is_heard_as_silence(house: House, url: str) -> None:
    async with Client(url) as client:
        assert (await client.hear("session.created"))["session"]["model"] == "checksum"
        await until(lambda: len(house.observers[-1].contexts) > 3)


async def test_a_hang_up_gives_the_slots_back(house: House, url: str) -> None:
    async with Client(url) as client:
        await client.hear("session.created")
        assert house.lm.held == 1
    await until(lambda: house.lm.held == sum(house.codec.held.values()) == 0)


async def test_the_next_in_line_gets_the_slot_of_who_hangs_up(house: House, url: str) -> None:
    async with Client(url) as first, Client(url) as second:
        await first.hear("session.created")
        await until(lambda: house.desk._resources.line.waiting == 1)
        await second.ask("session.update", session={})
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:  # one may wait in this house
            async with Client(url):
                pass
        assert caught.value.status == 503
        await first.socket.close()
        await second.hear("session.updated")
        assert [one["type"] for one in second.heard] == ["session.created", "session.updated"]


async def test_a_gateway_that_stops(house: House, url: str) -> None:
    async with Client(url) as client:
        await client.hear("session.created")
        house.desk.drain()
        assert await client.end() == 1012
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with Client(url):
            pass
    assert caught.value.status == 503
    await until(lambda: house.lm.held == 0)
