"""What strangers, revoked keys and slow issuers do to everybody else, over a real Redis and a real issuer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harness.issuer import AUDIENCE, ISSUER, Issuer, token
from services.gateway.calls.callers import Audio, Caller, CallerLimits
from services.gateway.calls.events import Queued, Ready, Speech
from services.gateway.calls.limits import Limits
from services.gateway.store import Store
from services.gateway.trust.guard import REFUSED, Guard
from services.gateway.trust.keys import LOOK_S, KeyFile, hash_of, new_key
from services.gateway.trust.tickets import ISSUED, Tickets
from services.gateway.trust.tokens import FRESH_S, KeySet, Tokens
from services.mesh.errors import (
    AudioQuotaUsed,
    IssuerUnavailable,
    MeshError,
    TooManyRefused,
    TooManyTickets,
    Unauthenticated,
)
from tests.gateway.fake_codec import FakeCodec
from tests.gateway.fake_lm import FakeLm
from tests.gateway.house import OPENING, House, frame
from tests.gateway.redis_server import RedisServer
from tests.until import until

HERE = "10.0.0.1"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def write_keys(path: Path, **keys: str) -> Path:
    path.write_text(json.dumps({"keys": [{"name": name, "sha256": hash_of(key)} for name, key in keys.items()]}))
    return path


async def test_a_stranger_behind_the_same_proxy_keeps_nobody_with_a_key_out(tmp_path: Path, stores: list[Store]
                                                                            ) -> None:
    key = new_key()
    guard = Guard(KeyFile(write_keys(tmp_path / "keys", shop=key)), None, Tickets(stores[0]), CallerLimits())
    refusals = []
    for _ in range(REFUSED[0] + 5):
        with pytest.raises(MeshError) as caught:
            await guard.caller("mm_guessed", HERE, "grpc")
        refusals.append(type(caught.value))
    assert refusals[0] is Unauthenticated and refusals[-1] is TooManyRefused
    assert (await guard.caller(key, HERE, "grpc")).key_id == "shop"
    with pytest.raises(TooManyRefused):  # each costs Redis a look
        await guard.caller("ek_guessed", HERE, "grpc")


async def test_an_address_can_t_fill_redis_with_tickets_and_others_still_get_some(stores: list[Store]) -> None:
    tickets = Tickets(stores[0])
    greedy, other = (Caller.with_key("", address, "realtime") for address in (HERE, "10.0.0.2"))
    with pytest.raises(TooManyTickets) as refused:
        for _ in range(4 * ISSUED[0]):  # a machine so slow that it gets more in that time is not hurt by them
            await tickets.issue(greedy, 7200.0, single_use=False, note="x" * 1000)
    assert refused.value.retry_after_s
    assert (await tickets.redeem((await tickets.issue(other))[0])).name == other.key_id


async def test_a_key_that_leaked_and_is_replaced_under_its_name_ends_with_its_calls_and_tickets(
        tmp_path: Path, stores: list[Store]) -> None:
    clock, leaked = Clock(), new_key()
    path = write_keys(tmp_path / "keys", shop=leaked)
    guard = Guard(KeyFile(path, clock), None, Tickets(stores[0]), CallerLimits())
    caller = await guard.caller(leaked, HERE, "grpc")
    ticket, _ = await guard.issue(caller, 600, single_use=False)
    by_ticket = await guard.caller(ticket, HERE, "pcm")
    assert caller.valid() and by_ticket.valid()
    path.unlink()
    write_keys(path, shop=new_key())
    clock.now_s += LOOK_S + 1
    assert not caller.valid() and not by_ticket.valid()
    for credential in (leaked, ticket):
        with pytest.raises(Unauthenticated):
            await guard.caller(credential, HERE, "grpc")


@pytest.mark.parametrize("credential", ["mm_\udcff", "ek_\udcff", "\udcff.\udcff.\udcff", "\0", "ek_"])
async def test_bytes_that_are_no_text_are_an_unknown_credential(tmp_path: Path, stores: list[Store], credential: str
                                                                ) -> None:
    """aiohttp hands on a header with such bytes as surrogates."""
    guard = Guard(KeyFile(write_keys(tmp_path / "keys")), Tokens(ISSUER, AUDIENCE, KeySet("https://localhost")),
                  Tickets(stores[0]), CallerLimits())
    with pytest.raises(Unauthenticated):
        await guard.caller(credential, HERE, "grpc")
    await guard.close()


async def test_nobody_waits_for_an_issuer_whose_keys_are_only_getting_old() -> None:
    clock = Clock()
    async with Issuer() as issuer:
        tokens = Tokens(ISSUER, AUDIENCE, KeySet(issuer.url, clock))
        await tokens.check(token())
        issuer.behave(waits_s=60)
        clock.now_s += FRESH_S + 1
        await asyncio.wait_for(tokens.check(token()), 1)
        await until(lambda: issuer.asked == 2)
        await tokens.close()


async def test_an_issuer_that_took_all_its_time_is_not_waited_for_by_the_next_caller(monkeypatch: pytest.MonkeyPatch
                                                                                     ) -> None:
    monkeypatch.setattr("services.gateway.trust.tokens.ANSWER_S", 0.3)
    async with Issuer() as issuer:
        issuer.behave(waits_s=60)
        tokens = Tokens(ISSUER, AUDIENCE, KeySet(issuer.url))
        for _ in range(3):
            with pytest.raises(IssuerUnavailable):
                await tokens.check(token())
        assert issuer.asked == 1
        await tokens.close()


async def test_audio_beyond_the_quota_is_charged(stores: list[Store]) -> None:
    """Else one that is ended for it could call again and again, for as long as a look at the quota takes."""
    limits = Limits(stores[0], refresh_s=0.05)
    caller = Caller("shop", HERE, "grpc", CallerLimits(audio_s_per_hour=10))
    for name in ("first", "second"):
        ended: list[MeshError] = []
        async with limits.admit(caller, name, ended.append) as use:
            use.audio_s += 9.0
            if name == "second":
                await until(lambda ended=ended: ended)
                assert isinstance(ended[0], AudioQuotaUsed)
    with pytest.raises(AudioQuotaUsed):
        async with limits.admit(caller, "third", ended.append):
            pass


async def test_a_call_of_a_revoked_key_leaves_the_line(server: RedisServer) -> None:
    valid = True

    async def silence() -> AsyncIterator[Audio]:
        await asyncio.Event().wait()
        yield Audio(frame(0))

    async def call(house: House, caller: Caller, told: list[object]) -> None:
        with contextlib.suppress(MeshError):
            async with contextlib.aclosing(house.desk.hold(caller, OPENING, silence())) as events:
                async for event in events:
                    told.append(event)

    async with House(server.url, codec=FakeCodec(), lm=FakeLm()) as house:
        house.desk._limits._refresh_s = 0.05
        calls: list[asyncio.Task[None]] = []
        while True:  # until the mesh is full
            told: list[object] = []
            calls.append(asyncio.create_task(call(house, Caller("good", HERE, "grpc"), told)))
            await until(lambda told=told: told)
            if isinstance(told[0], Queued):
                break
            assert isinstance(told[0], Ready)
        calls[-1].cancel()
        await asyncio.gather(calls.pop(), return_exceptions=True)
        told = []
        waiting = asyncio.create_task(call(house, Caller("bad", HERE, "grpc", valid=lambda: valid), told))
        await until(lambda: told)
        valid = False
        await until(waiting.done)  # nobody has left
        assert all(isinstance(event, Queued) for event in told) and not any(isinstance(one, Speech) for one in told)
        for one in calls:
            one.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
