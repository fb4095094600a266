"""Whole conversations without a wire: what every edge can rely on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import numpy as np
import pytest
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import Opening, Resumed
from services.gateway.calls.events import ConversationEvent, GoAway, Ready, Speech, Summary
from services.gateway.peers.replicas import STEP
from services.mesh.errors import (
    CallTooLong,
    Draining,
    MeshError,
    TooManyCalls,
    TooManyResumes,
    UnknownSession,
)
from tests.gateway.fake_codec import FRAME, RATE
from tests.gateway.fake_lm import DELAY
from tests.gateway.house import FRAMES, OPENING, House, cut_off, expected, spoken
from tests.gateway.redis_server import RedisServer
from tests.until import until


async def test_a_whole_conversation(house: House) -> None:
    events = [event async for event in house.hold(OPENING, spoken(0, FRAMES))]
    ready, *told, summary = events
    speech = [event for event in told if isinstance(event, Speech)]  # events of the conversation are among it
    assert isinstance(ready, Ready)
    assert (ready.model_id, ready.sample_rate_hertz, ready.samples_per_frame) == ("checksum", RATE, FRAME)
    assert ready.sampling == lm_pb2.Sampling(seed=1) and ready.next_sequence == 0
    assert all(isinstance(one, Speech | ConversationEvent) for one in told)
    assert [[one.text_token, *one.codes] for one in speech] == expected(FRAMES)
    assert all(one.pcm.dtype == np.float32 and one.pcm[:2].tolist() == one.codes for one in speech)
    assert [one.context.sequence for one in speech] == list(range(DELAY, FRAMES + DELAY))
    assert summary == Summary(frames_in=FRAMES, frames_out=FRAMES, frames_skipped=0)
    (heard,) = house.observers
    assert heard.facts == [("opened", ready.session_id, "checksum", 80_000_000), ("ended", "completed")]
    assert heard.sequences == list(range(FRAMES + DELAY)) == [context.sequence for context in heard.contexts]
    assert heard.seconds == pytest.approx(FRAMES * 0.08)
    await until(lambda: house.lm.held == sum(house.codec.held.values()) == 0)


async def test_a_refused_resume_leaves_the_live_call_alone(house: House, redis_server: RedisServer) -> None:
    """Whoever asks for a call that has lasted long enough has taken nothing from the call that speaks."""
    hang_up = asyncio.Event()
    said: list[Speech] = []
    async with House(redis_server.url, longest_call_s=1e-9) as another, contextlib.aclosing(
            house.hold(OPENING, spoken(0, FRAMES, hang_up))) as events:
        ready = await anext(events)
        assert isinstance(ready, Ready)
        house.desk._resources = dataclasses.replace(house.desk._resources, longest_call_s=1e-9)
        said.append(await anext(events))
        await until(lambda: house.sessions.lag_s == 0.0)
        for there in (house, another):
            with pytest.raises(CallTooLong):
                await anext(there.hold(Opening(Resumed(ready.resume_handle)), spoken(0, 1)))
        hang_up.set()
        said += [event async for event in events if isinstance(event, Speech)]
    assert [[one.text_token, *one.codes] for one in said] == expected(FRAMES)


async def test_a_call_that_lasted_as_long_as_it_may_is_not_resumed_and_not_deleted(
        house: House, redis_server: RedisServer) -> None:
    """An age that is impossible here, as after a wrong setting: another gateway can still resume the call."""
    ready, said = await cut_off(house, 10)
    last = said[-1].context.sequence
    opening = Opening(Resumed(ready.resume_handle, last + 1, last), live=False)
    async with House(redis_server.url, longest_call_s=1e-9) as strict:
        with pytest.raises(CallTooLong):
            await anext(strict.hold(opening, spoken(last + 1, FRAMES)))
    events = [event async for event in house.hold(opening, spoken(last + 1, FRAMES))]
    assert isinstance(events[-1], Summary)


async def test_what_a_conversation_can_t_be_opened_with(house: House) -> None:
    for opening, reason in (
            (Opening(Resumed("no handle")), UnknownSession.reason),
            (Opening(Resumed("A" * 43)), UnknownSession.reason),
            (Opening(Resumed("A" * 43, first_sequence=1 << 30)), "BAD_SEQUENCE"),
            (Opening(Resumed("A" * 43, answered_sequence=1 << 30)), "BAD_SEQUENCE")):
        with pytest.raises(MeshError) as caught:
            await anext(house.hold(opening, spoken(0, 1)))
        assert caught.value.reason == reason
    assert house.lm.held == 0


async def test_a_gateway_that_stops(house: House) -> None:
    over = asyncio.Event()
    held = house.hold(OPENING, spoken(0, 5, over))
    assert isinstance(await anext(held), Ready)
    house.desk.drain()
    with pytest.raises(Draining):
        await anext(house.hold(OPENING, spoken(0, 1)))
    over.set()
    told = [event async for event in held]
    assert [event.time_left_s for event in told if isinstance(event, GoAway)] == [5.0]
    assert isinstance(told[-1], Summary)


async def test_resuming_has_a_rate(house: House) -> None:
    opening = Opening(Resumed("A" * 43))
    reasons = []
    for _ in range(30):
        with pytest.raises(MeshError) as caught:
            await anext(house.hold(opening, spoken(0, 1)))
        reasons.append(caught.value.reason)
    assert reasons[:5] == [UnknownSession.reason] * 5 and reasons[-1] == TooManyResumes.reason
    assert caught.value.retry_after_s


async def test_calls_of_a_key_are_counted(redis_server: RedisServer) -> None:
    async with House(redis_server.url, calls_per_key=1) as house:
        over = asyncio.Event()
        first = house.hold(OPENING, spoken(0, 1, over))
        assert isinstance(await anext(first), Ready)
        with pytest.raises(TooManyCalls):
            await anext(house.hold(OPENING, spoken(0, 1)))
        assert house.observers[-1].facts == [("ended", "TOO_MANY_CALLS")]
        over.set()
        async for _ in first:
            pass
        while True:  # the first one's place is given back in the background
            with contextlib.suppress(TooManyCalls):
                assert isinstance([event async for event in house.hold(OPENING, spoken(0, 1))][-1], Summary)
                break


async def test_what_the_mesh_serves(house: House) -> None:
    info = await house.desk.info()
    assert (info.model_id, info.sample_rate_hertz, info.samples_per_frame) == ("checksum", RATE, FRAME)
    assert (info.slots_total, info.slots_free) == (8, 8)


async def test_a_row_at_a_replica_that_no_call_holds_is_noticed(house: House) -> None:
    assert list(house.desk.disagreements()) == []
    async with contextlib.aclosing(house.hold(OPENING, spoken(0, FRAMES, asyncio.Event()))) as events:
        assert isinstance(await anext(events), Ready)
        assert list(house.desk.disagreements()) == []
    await until(lambda: not list(house.desk.disagreements()))
    lost = (await house.fleet.lm.pick(STEP.name, "checksum")).tunnel.call(STEP)
    assert [one.invariant for one in house.desk.disagreements()] == ["rows"]
    lost.cancel()
