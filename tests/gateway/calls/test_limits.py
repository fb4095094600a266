"""What a key or an address may do, over gateways that share a real Redis, and without it."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager

import pytest

from services.gateway.calls.callers import Caller, CallerLimits
from services.gateway.calls.limits import GONE_S, Limits, Use
from services.gateway.store import Store
from services.mesh.errors import AudioQuotaUsed, MeshError, TooManyCalls, Unauthenticated
from tests.gateway.redis_server import RedisServer
from tests.until import until


def _nothing(error: MeshError) -> None:
    raise AssertionError(error)


def _call(limits: Limits, key: str, conversation: str, address: str = "", **most: int
          ) -> AbstractAsyncContextManager[Use]:
    return limits.admit(Caller(key, address, "test", CallerLimits(**most)), conversation, _nothing)


async def test_calls_of_a_key_over_gateways(stores: list[Store]) -> None:
    one, other = (Limits(store) for store in stores)
    async with (_call(one, "key", "1", calls=2), _call(other, "key", "2", calls=2),
                _call(one, "another key", "3", calls=2)):
        for limits in (one, other):
            with pytest.raises(TooManyCalls) as caught:
                async with _call(limits, "key", "4", calls=2):
                    pass
            assert caught.value.retry_after_s
        async with _call(one, "", "5", calls=2):
            pass

    async def has_room_again() -> bool:
        with contextlib.suppress(TooManyCalls):
            async with _call(other, "key", "6", calls=2), _call(other, "key", "7", calls=2):
                return True
        return False

    await until(has_room_again, GONE_S / 2)  # sooner than calls of a lost gateway are forgotten


async def test_a_conversation_that_is_resumed_counts_once(stores: list[Store]) -> None:
    one, other = (Limits(store) for store in stores)
    async with (_call(one, "key", "a conversation", calls=1), _call(other, "key", "a conversation", calls=1),
                _call(one, "key", "a conversation", calls=1)):
        with pytest.raises(TooManyCalls):
            async with _call(one, "key", "another", calls=1):
                pass


async def test_limits_without_redis(server: RedisServer, stores: list[Store]) -> None:
    server.kill()
    limits = Limits(stores[0])
    async with _call(limits, "key", "1", calls=1, calls_per_minute=1, audio_s_per_hour=1):
        with pytest.raises(TooManyCalls):
            async with _call(limits, "key", "2", calls=1):
                pass
    async with _call(limits, "key", "3", calls=1):
        pass


async def test_no_limit(server: RedisServer) -> None:
    limits = Limits(Store(server.url))
    async with _call(limits, "key", "1"), _call(limits, "key", "2"):
        assert not server.client.keys("*")


async def test_redis_does_not_learn_a_key(server: RedisServer, stores: list[Store]) -> None:
    async with _call(Limits(stores[0]), "a secret key", "1", calls=2, calls_per_minute=9, audio_s_per_hour=9):
        assert len(server.client.keys("*key:*")) == 3
        assert not any(b"secret" in key for key in server.client.keys("*"))


async def test_calls_of_a_lost_gateway_do_not_count_for_ever(server: RedisServer, stores: list[Store]) -> None:
    """A gateway names its calls again and again; those of one that no longer does are forgotten."""
    lost, other = Limits(stores[0], refresh_s=60.0, gone_s=0.3), Limits(stores[1], refresh_s=0.05, gone_s=0.3)
    assert await lost._enter("moshimesh:{key:x}:calls", "1", 1)
    assert not await other._enter("moshimesh:{key:x}:calls", "2", 1)
    await until(lambda: not server.client.exists("moshimesh:{key:x}:calls"))
    async with _call(other, "key", "3", calls=1):
        (counted,) = server.client.keys("*:calls")
        ends = server.client.zscore(counted, "3")
        await until(lambda: server.client.zscore(counted, "3") > ends + 300)  # far past the time that it had at first


async def test_a_redis_that_refuses_counts_nothing(server: RedisServer, stores: list[Store]) -> None:
    """Each gateway counts its own calls then, as it does without Redis."""
    server.client.config_set("maxmemory", 1)
    limits = Limits(stores[0])
    async with _call(limits, "key", "1", calls=1):
        with pytest.raises(TooManyCalls):
            async with _call(limits, "key", "2", calls=1):
                pass


async def test_new_calls_in_a_minute(stores: list[Store]) -> None:
    one, other = (Limits(store) for store in stores)
    for number, limits in enumerate((one, other, one)):
        async with _call(limits, "key", str(number), calls_per_minute=3):
            pass
    with pytest.raises(TooManyCalls):
        async with _call(other, "key", "4", calls_per_minute=3):
            pass
    async with _call(other, "another key", "5", calls_per_minute=3):
        pass


async def test_callers_from_one_address_share_its_limits(stores: list[Store]) -> None:
    limits = Limits(stores[0], CallerLimits(calls=1))
    async with _call(limits, "one key", "1", "10.0.0.1"):
        with pytest.raises(TooManyCalls, match="this address"):
            async with _call(limits, "another key", "2", "10.0.0.1"):
                pass
        async with _call(limits, "another key", "3", "10.0.0.2"):
            pass


async def test_audio_of_an_hour_is_charged_while_it_comes_and_at_the_end(stores: list[Store]) -> None:
    one, other = (Limits(store, refresh_s=0.05) for store in stores)
    ended: asyncio.Future[MeshError] = asyncio.get_running_loop().create_future()
    caller = Caller("key", "", "test", CallerLimits(audio_s_per_hour=100))
    async with one.admit(caller, "1", _nothing) as use:
        use.audio_s += 60
        await until(lambda: use.audio_s == 0)
        use.audio_s += 39  # charged when it ends
    await asyncio.sleep(0)
    async with other.admit(caller, "2", ended.set_result) as use:
        use.audio_s += 2
        assert isinstance(await asyncio.wait_for(ended, 5), AudioQuotaUsed)
    await until(lambda: True)
    async with other.admit(Caller("another", "", "test", CallerLimits(audio_s_per_hour=100)), "3", _nothing):
        pass


async def test_no_new_call_when_the_hour_s_audio_is_used_up(stores: list[Store]) -> None:
    limits = Limits(stores[0])
    async with _call(limits, "key", "1", audio_s_per_hour=10) as use:
        use.audio_s += 10

    async def refused() -> bool:
        try:
            async with _call(limits, "key", "2", audio_s_per_hour=10):
                return False
        except AudioQuotaUsed:
            return True

    await until(refused)


async def test_a_call_whose_key_is_revoked_ends_within_seconds(stores: list[Store]) -> None:
    ended: asyncio.Future[MeshError] = asyncio.get_running_loop().create_future()
    holds = [True]
    caller = Caller("key", "", "test", valid=lambda: holds[0])
    async with Limits(stores[0], refresh_s=0.05).admit(caller, "1", ended.set_result):
        await asyncio.sleep(0.2)
        assert not ended.done()
        holds[0] = False
        error = await asyncio.wait_for(ended, 5)
        assert isinstance(error, Unauthenticated) and error.reason == "KEY_REVOKED"
