"""The batcher with a fake engine whose steps the test releases by hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing

import pytest

from services.mesh.batching import HANG_S, IN_FLIGHT_FRAMES, Answer, Batcher, BatchingOptions
from services.mesh.errors import Draining, EngineFailed, IdleCaller, InvalidRequest, NoFreeSlot
from services.mesh.gathering import Gathering
from tests.until import settled


class Echo:
    """Answers each payload with itself and the row's setting; remembers what it was asked.

    A setting is the session's name, or "name/3" for an opening of three chunks, or "name/3!" if the last one fails.
    """

    def __init__(self, slots: int = 4) -> None:
        self.slots = slots
        self.batches: list[list[int]] = []
        self.log: list[str] = []
        self.heard: dict[str, list[int]] = {}
        self.gate = threading.Event()
        self.gate.set()
        self._settings: dict[int, str] = {}

    def open(self, row: int, settings: str) -> Iterator[None]:
        name, _, chunks = settings.partition("/")
        self._settings[row] = name
        for chunk in range(int(chunks.rstrip("!") or 0)):
            self.log.append(f"{name} {chunk}")
            assert self.gate.wait(5)
            if chunks == f"{chunk + 1}!":
                raise ValueError("a past that the engine chokes on")
            yield

    def step(self, rows: Sequence[int], payloads: Sequence[int]) -> Sequence[tuple[str, int]]:
        self.batches.append(list(rows))
        self.log.append("step")
        assert self.gate.wait(5)
        if -1 in payloads:
            raise ValueError("a payload that the engine chokes on")
        for row, payload in zip(rows, payloads, strict=True):
            self.heard.setdefault(self._settings[row], []).append(payload)
        return [(self._settings[row], payload) for row, payload in zip(rows, payloads, strict=True)]


async def until(condition: Callable[[], object]) -> None:
    """Wait for what the engine's thread does."""
    async def poll() -> None:
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), 5)


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
        moments = [timing.received_unix_nanos, timing.dequeued_unix_nanos, timing.started_unix_nanos,
                   timing.finished_unix_nanos]
        assert moments == sorted(moments)
    assert [answer.timing.tick for answer in answers] == list(range(1, 21))


async def test_sessions_share_steps(echo) -> None:
    engine, batcher = echo
    answers = await asyncio.gather(*(collect(batcher, name, numbers(30)) for name in "abcd"))
    for name, mine in zip("abcd", answers, strict=True):
        assert [answer.result for answer in mine] == [(name, number) for number in range(30)]
    assert max(map(len, engine.batches)) == 4
    assert batcher.free == 4


async def test_an_engine_that_hangs_in_a_step_is_not_alive() -> None:
    engine, clock = Echo(), [0.0]
    batcher: Batcher[str, int, tuple[str, int]] = Batcher("echo", engine, now=lambda: clock[0])
    assert batcher.alive
    engine.gate.clear()
    calling = asyncio.ensure_future(collect(batcher, "a", numbers(1)))
    await until(lambda: engine.batches)
    clock[0] = HANG_S - 1
    assert batcher.alive
    clock[0] = HANG_S + 1
    assert not batcher.alive
    engine.gate.set()
    await calling
    assert batcher.alive  # it only took long
    clock[0] *= 2
    assert batcher.alive  # it has nothing to do
    await batcher.close()
    assert not batcher.alive


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such scheduling class")
@pytest.mark.parametrize(("yields", "policy"), [(False, "SCHED_OTHER"), (True, "SCHED_IDLE")])
async def test_the_engine_gives_way_to_other_threads_only_when_asked(
        yields: bool, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Echo()
    batcher: Batcher[str, int, tuple[str, int]] = Batcher("echo", engine, BatchingOptions(yield_cpu=yields))
    policies: list[int] = []
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda *batch: policies.append(os.sched_getscheduler(0)) or step(*batch))
    await collect(batcher, "a", numbers(1))
    assert policies == [getattr(os, policy)]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    await batcher.close()


async def test_a_session_without_frames_loses_its_row_and_others_do_not() -> None:
    engine = Echo()
    batcher: Batcher[str, int, tuple[str, int]] = Batcher("echo", engine, BatchingOptions(idle_s=0.3))

    async def few() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def slow() -> AsyncIterator[int]:
        for number in range(12):
            await asyncio.sleep(0.05)
            yield number

    engine.gate.clear()
    working = asyncio.create_task(collect(batcher, "working", numbers(1)))  # its frame waits for the engine
    await until(lambda: engine.batches)
    idle = [asyncio.create_task(collect(batcher, "idle", few())) for _ in range(2)]
    await asyncio.sleep(0.7)
    assert not any(task.done() for task in (working, *idle))
    engine.gate.set()
    assert len(await working) == 1
    assert len(await collect(batcher, "slow", slow())) == 12
    for task in idle:
        with pytest.raises(IdleCaller, match="no frame for"):
            await asyncio.wait_for(task, 5)
    assert batcher.free == 4
    await batcher.close()


async def test_no_more_leases_than_slots_and_lowest_row_first(echo) -> None:
    _, batcher = echo
    with batcher.lease("a", "a") as first, batcher.lease("b", "b"), batcher.lease("c", "c"), batcher.lease("d", "d"):
        assert first.row == 0
        with pytest.raises(NoFreeSlot), batcher.lease("e", "e"):
            pass
    assert batcher.free == 4


async def test_a_draining_replica_takes_nobody_and_its_sessions_go_on(echo) -> None:
    _, batcher = echo
    with batcher.lease("a", "a") as slot:
        async with aclosing(slot.serve(numbers(5))) as answers:
            assert (await anext(answers)).result == ("a", 0)
            batcher.draining = True
            assert batcher.free == 0
            with pytest.raises(Draining), batcher.lease("b", "b"):
                pass
            assert [answer.result async for answer in answers] == [("a", number) for number in range(1, 5)]


async def test_a_result_that_comes_after_its_tenant_left_reaches_nobody(echo) -> None:
    engine, batcher = echo
    engine.gate.clear()
    with batcher.lease("gone", "gone") as slot:
        async with aclosing(slot.serve(numbers(3))) as answers:
            pending = asyncio.ensure_future(answers.__anext__())
            await until(lambda: engine.batches)
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
    await settled()
    assert taken == IN_FLIGHT_FRAMES + 1  # one more is in the reader's hand
    session.cancel()
    await asyncio.gather(session, return_exceptions=True)


async def test_the_first_stage_waits_for_those_who_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as `Gathering` says, which hears when the last frames came of the sessions that are not here."""
    spoken = {name: asyncio.Queue[int]() for name in "abcd"}
    due: list[str] = []
    heard_of: list[list[int]] = []

    def wait_s(_: Gathering, now: int, sessions: int, last: Iterable[int]) -> float:
        assert sessions == 4
        if not due:
            return 0.0
        heard_of.append(sorted(last))
        while due:  # they come while it waits
            spoken[due.pop()].put_nowait(2)
        return 0.1

    monkeypatch.setattr(Gathering, "wait_s", wait_s)
    gathering: Batcher[str, int, tuple[str, int]] = Batcher("echo", Echo(), gathering=Gathering(80_000_000))

    async def frames(name: str) -> AsyncIterator[int]:
        for _ in range(2):
            yield await spoken[name].get()

    with contextlib.ExitStack() as leases:
        slots = {name: leases.enter_context(gathering.lease(name, name)) for name in spoken}
        answers = {name: slot.serve(frames(name)) for name, slot in slots.items()}
        firsts = []
        for name in spoken:
            asking = asyncio.create_task(anext(answers[name]))
            spoken[name].put_nowait(1)
            firsts.append((await asking).timing)
        assert [timing.batch_size for timing in firsts] == [1] * 4
        asking = [asyncio.create_task(anext(answer)) for answer in answers.values()]
        due += "bcd"
        spoken["a"].put_nowait(2)
        seconds = await asyncio.gather(*asking)
        assert [second.timing.batch_size for second in seconds] == [4] * 4
        assert heard_of == [sorted(timing.received_unix_nanos for timing in firsts[1:])]
        for answer in answers.values():
            await answer.aclose()
    await gathering.close()


async def test_a_lone_session_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    as_it_is = Gathering.wait_s
    monkeypatch.setattr(Gathering, "wait_s", lambda *asked: waited.append(as_it_is(*asked)) or waited[-1])
    gathering: Batcher[str, int, tuple[str, int]] = Batcher("echo", Echo(), gathering=Gathering(80_000_000))
    assert len(await collect(gathering, "a", numbers(3))) == 3
    assert set(waited) == {0.0}
    await gathering.close()


async def test_the_first_stage_asks_its_sessions_for_different_phases() -> None:
    gathering: Batcher[str, int, tuple[str, int]] = Batcher("echo", Echo(), gathering=Gathering(80))
    with gathering.lease("a", "a") as first, gathering.lease("b", "b") as second:
        assert sorted((first.phase_nanos, second.phase_nanos)) == [0, 40]
        with gathering.lease("c", "c") as third:
            assert third.phase_nanos == first.phase_nanos
    await gathering.close()


async def test_an_opening_takes_its_chunks_between_the_steps_of_others(echo) -> None:
    engine, batcher = echo
    engine.gate.clear()
    live = asyncio.create_task(collect(batcher, "live", numbers(IN_FLIGHT_FRAMES)))
    await until(lambda: engine.batches)
    with batcher.lease("new", "new/3") as slot:
        engine.gate.set()
        await slot.opened()
    assert engine.log == ["step", "new 0", "step", "new 1", "step", "new 2", "step"]
    assert len(await live) == IN_FLIGHT_FRAMES


async def test_a_short_opening_does_not_wait_for_a_long_one(echo) -> None:
    engine, batcher = echo
    with batcher.lease("long", "long/5") as long, batcher.lease("short", "short/2") as short:
        await short.opened()
        assert engine.log.count("long 4") == 0
        await long.opened()
    assert [line for line in engine.log if line != "step"] == [
        "long 0", "short 0", "long 1", "short 1", "long 2", "long 3", "long 4"]


async def test_nobody_is_waited_for_while_a_row_is_rebuilt() -> None:
    class ForEver(Gathering):
        def wait_s(self, now_unix_nanos: int, sessions: int, last_unix_nanos: Iterable[int]) -> float:
            return 60.0 if sessions > 1 else 0.0

    engine = Echo()
    gathering: Batcher[str, int, tuple[str, int]] = Batcher("echo", engine, gathering=ForEver(80_000_000))
    engine.gate.clear()
    live = asyncio.create_task(collect(gathering, "live", numbers(IN_FLIGHT_FRAMES)))
    await until(lambda: engine.batches)
    with gathering.lease("new", "new/20") as slot:
        engine.gate.set()
        await asyncio.wait_for(asyncio.gather(slot.opened(), live), 5)
    assert engine.batches == [[0]] * IN_FLIGHT_FRAMES
    await gathering.close()


async def test_an_opening_that_fails_is_told_to_its_tenant_only(echo) -> None:
    engine, batcher = echo
    live = asyncio.create_task(collect(batcher, "live", numbers(30)))
    with pytest.raises(EngineFailed, match="ValueError"), batcher.lease("bad", "bad/2!") as slot:
        await slot.opened()
    with pytest.raises(EngineFailed, match="ValueError"):
        await collect(batcher, "bad/1!", numbers(3))
    assert len(await live) == 30
    assert "bad" not in engine.heard
    assert batcher.free == 4


async def test_an_opening_and_a_step_that_fail_together_are_both_told(echo) -> None:
    engine, batcher = echo

    async def bad() -> AsyncIterator[int]:
        yield 1
        yield -1

    engine.gate.clear()
    live = asyncio.create_task(collect(batcher, "live", bad()))
    await until(lambda: engine.batches)
    with pytest.raises(EngineFailed), batcher.lease("bad", "bad/1!") as slot:
        engine.gate.set()
        await slot.opened()
    with pytest.raises(EngineFailed):
        await live


async def test_a_tenant_who_leaves_while_its_row_is_rebuilt(echo) -> None:
    engine, batcher = echo
    engine.gate.clear()
    with batcher.lease("gone", "gone/3") as slot:
        await until(lambda: engine.log)
        row = slot.row
    assert batcher.free == 4
    with batcher.lease("next", "next/2") as slot:
        assert slot.row == row
        engine.gate.set()
        assert [answer.result async for answer in slot.serve(numbers(3))] == [("next", 0), ("next", 1), ("next", 2)]
    assert engine.log == ["gone 0", "next 0", "next 1", *["step"] * 3]
    assert engine.heard["next"] == [0, 1, 2]


async def test_who_is_cancelled_while_its_row_is_rebuilt_gives_it_back(echo) -> None:
    engine, batcher = echo
    engine.gate.clear()
    waiting = asyncio.create_task(collect(batcher, "gone/3", numbers(3)))
    await until(lambda: engine.log)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert batcher.free == 4
    engine.gate.set()
    assert len(await collect(batcher, "next", numbers(3))) == 3
    assert engine.log == ["gone 0", "step", "step", "step"]
