"""The batcher with a fake engine whose steps the test releases by hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest

from services.mesh.batching import GATHER_S_PER_SESSION, IN_FLIGHT_FRAMES, Answer, Batcher
from services.mesh.errors import Draining, EngineFailed, InvalidRequest, NoFreeSlot


class Echo:
    """Answers each payload with itself and the row's setting; remembers what it was asked."""

    def __init__(self, slots: int = 4) -> None:
        self.slots = slots
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._settings: dict[int, str] = {}

    def open(self, row: int, settings: str) -> None:
        self._settings[row] = settings

    def step(self, rows: Sequence[int], payloads: Sequence[int]) -> Sequence[tuple[str, int]]:
        self.batches.append(list(rows))
        assert self.gate.wait(5)
        if -1 in payloads:
            raise ValueError("a payload that the engine chokes on")
        return [(self._settings[row], payload) for row, payload in zip(rows, payloads, strict=True)]


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, Batcher[str, int, tuple[str, int]]]]:
    engine = Echo()
    batcher: Batcher[str, int, tuple[str, int]] = Batcher("echo", engine)
    yield engine, batcher
    engine.gate.set()
    await batcher.close()


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def collect(batcher: Batcher[str, int, tuple[str, int]], tenant: str, payloads: AsyncIterator[int]
                  ) -> list[Answer[tuple[str, int]]]:
    with batcher.lease(tenant, tenant) as slot:
        return [answer async for answer in slot.serve(payloads)]


async def test_answers_come_in_order_with_their_timings(echo) -> None:
    _, batcher = echo
    answers = await collect(batcher, "a", numbers(20))
    assert [answer.result for answer in answers] == [("a", number) for number in range(20)]
    for answer in answers:
        timing = answer.timing
        assert timing.received <= timing.dequeued <= timing.started <= timing.finished
    assert [answer.timing.tick for answer in answers] == list(range(1, 21))


async def test_sessions_share_steps(echo) -> None:
    engine, batcher = echo
    answers = await asyncio.gather(*(collect(batcher, name, numbers(30)) for name in "abcd"))
    for name, mine in zip("abcd", answers, strict=True):
        assert [answer.result for answer in mine] == [(name, number) for number in range(30)]
    assert max(map(len, engine.batches)) == 4
    assert batcher.free == 4


async def test_no_more_leases_than_slots_and_lowest_row_first(echo) -> None:
    _, batcher = echo
    with batcher.lease("a", "a") as first, batcher.lease("b", "b"), batcher.lease("c", "c"), batcher.lease("d", "d"):
        assert first.row == 0
        with pytest.raises(NoFreeSlot), batcher.lease("e", "e"):
            pass
    assert batcher.free == 4
    batcher.draining = True
    with pytest.raises(Draining), batcher.lease("f", "f"):
        pass


async def test_a_result_that_comes_after_its_tenant_left_reaches_nobody(echo) -> None:
    engine, batcher = echo
    engine.gate.clear()
    with batcher.lease("gone", "gone") as slot:
        async with aclosing(slot.serve(numbers(3))) as answers:
            pending = asyncio.ensure_future(answers.__anext__())
            while not engine.batches:  # noqa: ASYNC110 - the engine's thread sets it
                await asyncio.sleep(0.001)
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
    engine_is_still_busy = asyncio.create_task(collect(batcher, "next", numbers(5)))
    await asyncio.sleep(0.01)
    engine.gate.set()
    assert [answer.result for answer in await engine_is_still_busy] == [("next", number) for number in range(5)]


async def test_a_step_that_fails_is_told_to_its_batch_only(echo) -> None:
    _, batcher = echo

    async def bad() -> AsyncIterator[int]:
        yield -1

    with pytest.raises(EngineFailed, match="ValueError"):
        await collect(batcher, "bad", bad())
    assert len(await collect(batcher, "good", numbers(3))) == 3
    assert batcher.free == 4


async def test_a_reader_that_fails_ends_the_session(echo) -> None:
    _, batcher = echo

    async def broken() -> AsyncIterator[int]:
        yield 1
        raise InvalidRequest("BAD_PCM", "not like this")

    with pytest.raises(InvalidRequest, match="not like this"):
        await collect(batcher, "a", broken())
    assert batcher.free == 4


async def test_a_session_has_a_bounded_number_of_frames_under_way(echo) -> None:
    engine, batcher = echo
    engine.gate.clear()
    taken = 0

    async def endless() -> AsyncIterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    session = asyncio.create_task(collect(batcher, "a", endless()))
    await asyncio.sleep(0.05)
    assert taken == IN_FLIGHT_FRAMES + 1  # one more is in the reader's hand
    session.cancel()
    await asyncio.gather(session, return_exceptions=True)


async def test_the_first_stage_gathers_but_a_lone_session_does_not_wait() -> None:
    async def spoken(start_s: float) -> AsyncIterator[int]:
        await asyncio.sleep(start_s)
        yield 1

    engine = Echo()
    gathering: Batcher[str, int, tuple[str, int]] = Batcher("echo", engine, gather=True)
    (alone,) = await collect(gathering, "a", numbers(1))
    assert alone.timing.dequeued - alone.timing.received < GATHER_S_PER_SESSION * 1e9
    names = "abcd"
    await asyncio.gather(*(collect(gathering, name, spoken(0.02)) for name in names))
    assert len(engine.batches[-1]) == len(names)
    await gathering.close()
