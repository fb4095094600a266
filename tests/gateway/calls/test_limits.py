"""How many calls a key may have, over gateways that share a real Redis, and without it."""

from __future__ import annotations

import contextlib

import pytest

from services.gateway.calls.limits import GONE_S, Limits
from services.gateway.store import Store
from services.mesh.errors import TooManyCalls
from tests.gateway.redis_server import RedisServer
from tests.until import until


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

    async def has_room_again() -> bool:
        with contextlib.suppress(TooManyCalls):
            async with other.admit("key", "6"), other.admit("key", "7"):
                return True
        return False

    await until(has_room_again, GONE_S / 2)  # sooner than calls of a lost gateway are forgotten


async def test_a_conversation_that_is_resumed_counts_once(stores: list[Store]) -> None:
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


async def test_calls_of_a_lost_gateway_do_not_count_for_ever(server: RedisServer, stores: list[Store]) -> None:
    """A gateway names its calls again and again; those of one that no longer does are forgotten."""
    lost, other = Limits(stores[0], 1, refresh_s=60.0, gone_s=0.3), Limits(stores[1], 1, refresh_s=0.05, gone_s=0.3)
    assert await lost._enter("moshimesh:{key:x}:calls", "1")
    assert not await other._enter("moshimesh:{key:x}:calls", "2")
    await until(lambda: not server.client.exists("moshimesh:{key:x}:calls"))
    async with other.admit("key", "3"):
        (counted,) = server.client.keys("*:calls")
        ends = server.client.zscore(counted, "3")
        await until(lambda: server.client.zscore(counted, "3") > ends + 300)  # far past the time that it had at first


async def test_a_redis_that_refuses_counts_nothing(server: RedisServer, stores: list[Store]) -> None:
    """Each gateway counts its own calls then, as it does without Redis."""
    server.client.config_set("maxmemory", 1)
    limits = Limits(stores[0], 1)
    async with limits.admit("key", "1"):
        with pytest.raises(TooManyCalls):
            async with limits.admit("key", "2"):
                pass
