"""Calls are moved together: the emptiest replica becomes empty, slowly, and nobody hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from services.gateway.calls.callers import Audio, Input
from services.gateway.calls.defragmentation import REST_S, Defragmentation
from services.gateway.calls.events import Speech
from services.gateway.path.observer import Change
from services.gateway.peers.replicas import STEP
from tests.gateway.fake_lm import FakeLm
from tests.gateway.house import OPENING, House, expected, frame
from tests.gateway.redis_server import RedisServer
from tests.until import until


class Talk:
    """A call whose frames are spoken when the test says so."""

    def __init__(self, house: House) -> None:
        self.said: list[list[int]] = []
        self._spoken, self._frames = 0, asyncio.Queue[int | None]()
        self._call = asyncio.create_task(self._hold(house))

    async def speak(self, frames: int) -> None:
        for number in range(self._spoken, self._spoken + frames):
            self._frames.put_nowait(number)
        self._spoken += frames
        await until(lambda: len(self.said) >= self._spoken - 1)  # the delay line holds one

    async def end(self) -> None:
        self._frames.put_nowait(None)
        await self._call
        assert self.said == expected(self._spoken)

    async def _hold(self, house: House) -> None:
        async for event in house.hold(OPENING, self._pieces()):
            if isinstance(event, Speech):
                self.said.append([event.text_token, *event.codes])

    async def _pieces(self) -> AsyncIterator[Input]:
        while (number := await self._frames.get()) is not None:
            yield Audio(frame(number))


async def polled(house: House) -> None:
    """The gateway knows what its replicas hold now."""
    await house.fleet.refresh()


async def test_the_emptiest_replica_is_emptied_and_every_answer_comes(redis_server: RedisServer) -> None:
    lms = [FakeLm(slots=4) for _ in range(3)]
    async with House(redis_server.url, lm=lms[0], spare_lms=lms[1:]) as house:
        talks = [Talk(house) for _ in range(5)]
        for talk in talks:
            await talk.speak(5)
        at, defragmentation = 1000.0, Defragmentation(house.fleet, lambda: house.desk.conversations,
                                                      now=lambda: at, every_s=1e6)
        before = sorted(lm.held for lm in lms)
        await polled(house)
        for moved in range(1, before[0] + 1):
            defragmentation.step()
            await until(lambda moved=moved: sum(changes(house).values()) == moved)  # one at a time
            for talk in talks:
                await talk.speak(2)
            await until(lambda: sum(lm.held for lm in lms) == 5)  # the row that was left is free
            await polled(house)
        assert min(lm.held for lm in lms) == 0
        defragmentation.step()
        (emptied,) = house.fleet.lm.emptying
        # No new call goes there while the others have room.
        for _ in range(3):
            assert await house.fleet.lm.pick(STEP.name, "checksum") is not emptied
        for talk in talks:
            await talk.end()
        await defragmentation.close()


async def test_no_call_moves_twice_within_a_minute(redis_server: RedisServer) -> None:
    lms = [FakeLm(slots=4) for _ in range(3)]
    async with House(redis_server.url, lm=lms[0], spare_lms=lms[1:]) as house:
        at = [1000.0]
        defragmentation = Defragmentation(house.fleet, lambda: house.desk.conversations, now=lambda: at[0],
                                          every_s=1e6)
        talk = Talk(house)
        await talk.speak(3)
        moves = 0
        for wait_s in (0.0, REST_S - 1, REST_S, REST_S):
            # The replica that has the call is the one to empty: the others hold calls of other gateways.
            here = next(lm for lm in lms if lm.held == 1)
            others = [lm for lm in lms if lm is not here]
            for lm in others:
                lm.held += 2
            await polled(house)
            at[0] += wait_s
            defragmentation.step()
            moves += wait_s != REST_S - 1
            await until(lambda moves=moves: sum(changes(house).values()) == moves)
            await talk.speak(2)
            await until(lambda: sum(lm.held for lm in lms) == 5)
            assert sum(changes(house).values()) == moves
            for lm in others:
                lm.held -= 2
            if wait_s == REST_S - 1:
                at[0] -= wait_s
        await talk.end()
        await defragmentation.close()


async def test_a_call_stays_when_the_others_have_just_become_full(redis_server: RedisServer) -> None:
    lms = [FakeLm(slots=4) for _ in range(3)]
    async with House(redis_server.url, lm=lms[0], spare_lms=lms[1:]) as house:
        defragmentation = Defragmentation(house.fleet, lambda: house.desk.conversations, every_s=1e6)
        talk = Talk(house)
        await talk.speak(3)
        here = next(lm for lm in lms if lm.held)
        for lm in lms:
            lm.held += 0 if lm is here else 2
        await polled(house)
        for lm in lms:
            lm.held += 0 if lm is here else 2  # since the poll
        defragmentation.step()
        await talk.speak(10)
        assert here.held == 1 and not changes(house)
        for lm in lms:
            lm.held -= 0 if lm is here else 4
        await talk.end()
        await defragmentation.close()


def changes(house: House) -> dict[Change, int]:
    found: dict[Change, int] = {}
    for observer in house.observers:
        for change in observer.changes:
            found[change] = found.get(change, 0) + 1
    return found
