"""Session records in a real Redis, which comes and goes."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis.asyncio as redis

from scripts.local_mesh import free_port, redis_executable
from services.gateway.sessions import ENDED_TTL_S, LIVE_TTL_S, WRITE_EVERY_S, SessionStore, record_key
from services.mesh.errors import PeerLost


class RedisServer:
    """A real server that a test may kill and start again on the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([redis_executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--save",
                                         "", "--loglevel", "warning"], cwd=Path("/tmp"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def ready(self) -> redis.Redis:
        client = redis.Redis.from_url(self.url, decode_responses=True)
        for _ in range(100):
            try:
                await client.ping()
                return client
            except redis.ConnectionError:
                await asyncio.sleep(0.05)
        raise AssertionError("redis did not start")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.kill()


async def test_records_are_written_and_expire(server: RedisServer) -> None:
    client = await server.ready()
    store = SessionStore(server.url)
    await store.connect()
    store.note("a", state="live", sequence=-1)
    store.note("a", sequence=12)
    await asyncio.sleep(2 * WRITE_EVERY_S)
    record = await client.hgetall(record_key("a"))
    assert (record["state"], record["sequence"]) == ("live", "12")
    assert ENDED_TTL_S < await client.ttl(record_key("a")) <= LIVE_TTL_S
    store.note("a", state="ended", ended="completed")
    await store.close()
    assert (await client.hgetall(record_key("a")))["ended"] == "completed"
    assert 0 < await client.ttl(record_key("a")) <= ENDED_TTL_S


async def test_notes_wait_for_a_redis_that_is_away(server: RedisServer) -> None:
    await server.ready()
    store = SessionStore(server.url)
    await store.connect()
    server.kill()
    store.note("a", state="live", sequence=1)
    await asyncio.sleep(3 * WRITE_EVERY_S)
    store.note("a", sequence=2)
    server.start()
    client = await server.ready()
    await asyncio.sleep(4 * WRITE_EVERY_S)
    assert (await client.hgetall(record_key("a"))).items() >= {"state": "live", "sequence": "2"}.items()
    await store.close()


async def test_no_redis_at_the_start_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(PeerLost, match="--redis-url"):
        await SessionStore(f"redis://127.0.0.1:{free_port()}/0").connect()
