"""A real Redis, two gateways' stores in it, and a gateway's desk over one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from services.gateway.store import Store
from tests.gateway.house import House
from tests.gateway.redis_server import RedisServer


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One that a test may fill, freeze or kill."""
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


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """One that the tests of a file share."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
async def house(redis_server: RedisServer) -> AsyncIterator[House]:
    async with House(redis_server.url) as house:
        yield house
