"""A session that moves between replicas gives the answers it would have given at one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from moshimesh.audio.v1 import audio_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.path.lease import Leaser
from services.gateway.path.memory import LmMemory
from services.gateway.path.observer import Change
from services.gateway.path.stage import ANSWER_S, Next, Stage
from services.gateway.peers.replicas import STEP, Replicas, lm_facts
from services.gateway.sessions.history import History
from services.mesh.errors import MeshError
from tests.gateway.fake_lm import CONTEXT, DELAY, OWN, USER, Checksum, FakeLm
from tests.gateway.fake_observer import Heard
from tests.until import until

FRAMES = 60
CODES = [[n % 64, n * 7 % 64] for n in range(FRAMES)]

Act = Callable[["Two", FakeLm, FakeLm], Awaitable[None]]


class Answers:
    """What a stage answers, to be read."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[lm_pb2.StepFrame | Exception | None] = asyncio.Queue()
        self.answered, self.fail = self._queue.put_nowait, self._queue.put_nowait

    def end(self) -> None:
        self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[lm_pb2.StepFrame]:
        while (item := await self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item


class Two:
    """Two replicas, and a session that is stepped through all of CODES."""

    async def __aenter__(self) -> Two:
        self.lms = [FakeLm(), FakeLm()]
        addresses = [await lm.start() for lm in self.lms]
        self.pool = Replicas("lm", ",".join(addresses), lm_facts)
        await self.pool.connect(time.monotonic() + 5)
        self.heard = Heard()
        self.answer_s = ANSWER_S
        self.answers: list[list[int] | None] = []
        self.gaps: list[float] = []
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close()
        for lm in self.lms:
            lm.answering.set()
            await lm.kill()

    async def open_stage(self, answers: Answers | None = None) -> Stage[lm_pb2.StepRequest, lm_pb2.StepResponse]:
        answers = answers or Answers()
        memory = LmMemory("a session", lm_pb2.Sampling(seed=1), History(USER, OWN, DELAY, CONTEXT))
        lease = await Leaser(self.pool, STEP, "checksum", memory).lease(lambda: 0)
        return Stage(lease, audio_pb2.HOP_LM_STEP, Next(answers.answered, answers.end, answers.fail), self.heard,
                     answer_s=self.answer_s)

    async def talk(self, act: Act | None = None, act_at: int = 20, pace_s: float = 0.002) -> None:
        """Step the session through all codes; `act` happens when some have been answered."""
        answers = Answers()
        stage = await self.open_stage(answers)
        in_flight = asyncio.Semaphore(4)  # as ingest does it

        async def ask() -> None:
            for number, codes in enumerate(CODES):
                await asyncio.sleep(pace_s)
                await in_flight.acquire()
                stage.send(lm_pb2.StepRequest(step=lm_pb2.StepInput(frame=audio_pb2.CodeFrame(
                    context=audio_pb2.FrameContext(sequence=number), codes=codes))))
            stage.half_close()

        try:
            here, there = sorted((*self.lms, self.lms[0])[:2], key=lambda lm: lm.held, reverse=True)
            asking = asyncio.create_task(ask())
            last = time.monotonic()
            async for step in answers:
                self.gaps.append(time.monotonic() - last)
                last = time.monotonic()
                in_flight.release()
                self.answers.append([step.text_token, *step.frame.codes] if step.HasField("text_token") else None)
                if act is not None and len(self.answers) == act_at:
                    await act(self, here, there)
            await asking
        finally:
            stage.close()


def expected() -> list[list[int] | None]:
    model = Checksum()
    return [model.step(codes) for codes in CODES]


async def killed(two: Two, here: FakeLm, there: FakeLm) -> None:
    await here.kill()


async def frozen(two: Two, here: FakeLm, there: FakeLm) -> None:
    here.answering.clear()


async def drained(two: Two, here: FakeLm, there: FakeLm) -> None:
    here.drain()


@pytest.mark.parametrize(("act", "changes"), [
    (None, []), (killed, [Change.FAILED_OVER]), (frozen, [Change.FAILED_OVER]),
    (drained, [Change.DRAINED])])
@pytest.mark.parametrize("act_at", [DELAY, 20, FRAMES - 4])
async def test_the_answers_are_those_of_one_replica(act: Act | None, changes: list[Change], act_at: int) -> None:
    async with Two() as two:
        two.answer_s = 0.2
        await asyncio.wait_for(two.talk(act, act_at), 20)
        assert two.answers == expected()
        assert two.heard.changes == changes
        if act is not None:  # the new row was rebuilt from what had been answered, but for frames in flight
            assert max(there for lm in two.lms for there in lm.opened) >= act_at - 4
        await until(lambda: not any(lm.held for lm in two.lms if lm.answering.is_set()))


async def test_a_drain_at_the_last_frame_need_not_move_anybody() -> None:
    async with Two() as two:
        await asyncio.wait_for(two.talk(drained, FRAMES - 1), 20)
        assert two.answers == expected()
        assert two.heard.changes in ([], [Change.DRAINED])


async def test_a_drain_leaves_no_gap() -> None:
    async with Two() as two:
        stayed = asyncio.Event()

        async def drained_and_slow(two: Two, here: FakeLm, there: FakeLm) -> None:
            """The new row is not ready before half of the rest was answered: by the old one, then."""
            there.opening_until = stayed
            here.drain()

        async def let_move(two: Two) -> None:
            await until(lambda: len(two.answers) >= 40)
            stayed.set()

        await asyncio.wait_for(asyncio.gather(two.talk(drained_and_slow, pace_s=0.01), let_move(two)), 20)
        assert two.answers == expected()
        assert two.heard.changes == [Change.DRAINED]


async def test_a_replica_that_comes_back() -> None:
    """With nowhere else to go, a session waits for its replica to be started again."""
    async with Two() as two:
        await two.lms.pop().kill()

        async def restarted(two: Two, here: FakeLm, there: FakeLm) -> None:
            await here.kill()
            asyncio.get_running_loop().call_later(0.5, lambda: asyncio.ensure_future(again(here.port)))

        async def again(port: int) -> None:
            two.lms.append(FakeLm())
            await two.lms[-1].start(port)

        await asyncio.wait_for(two.talk(restarted), 20)
        assert two.answers == expected()


async def test_no_replica_left() -> None:
    async with Two() as two:
        two.pool.failover_s = 0.5
        async def all_killed(two: Two, here: FakeLm, there: FakeLm) -> None:
            await here.kill()
            await there.kill()

        with pytest.raises(MeshError) as caught:
            await asyncio.wait_for(two.talk(all_killed), 10)
        assert caught.value.reason == "PEER_LOST"
        assert two.answers == expected()[:len(two.answers)]


async def test_full_replicas_are_passed_over_and_a_full_service_says_so() -> None:
    async with Two() as two:
        two.lms[0].slots = two.lms[1].slots = 1
        await two.pool.refresh()
        stages = [await two.open_stage() for _ in range(2)]
        assert [lm.held for lm in two.lms] == [1, 1]
        with pytest.raises(MeshError, match="all 2 slots") as caught:
            await two.open_stage()
        assert caught.value.reason == "NO_FREE_SLOT"
        stages[0].close()
        await until(lambda: sum(lm.held for lm in two.lms) == 1)
        last = await two.open_stage()  # although the last poll saw no free slot
        for one in (*stages, last):
            one.close()


async def test_placement_by_free_slots() -> None:
    """Of two drawn at random the one with more room: with two replicas they fill evenly."""
    async with Two() as two:
        stages = [await two.open_stage() for _ in range(8)]
        assert [lm.held for lm in two.lms] == [4, 4]
        for one in stages:
            one.close()


async def test_a_draining_replica_gets_nobody_new() -> None:
    async with Two() as two:
        two.lms[0].drain()
        stages = [await two.open_stage() for _ in range(4)]
        assert [lm.held for lm in two.lms] == [0, 4]
        for one in stages:
            one.close()


async def test_what_passes_while_a_slow_row_is_rebuilt() -> None:
    """More frames than a call may have waiting at once in everyday life."""
    async with Two() as two:
        async def drained_and_slow(two: Two, here: FakeLm, there: FakeLm) -> None:
            there.opening_s = 0.5
            here.drain()

        await asyncio.wait_for(two.talk(drained_and_slow, act_at=5, pace_s=0.01), 20)
        assert two.answers == expected()
        assert two.heard.changes == [Change.DRAINED]


async def test_a_stage_that_is_closed_while_its_row_is_lost_gives_up() -> None:
    async with Two() as two:
        answers = Answers()
        stage = await two.open_stage(answers)
        stage.send(lm_pb2.StepRequest(step=lm_pb2.StepInput(frame=audio_pb2.CodeFrame(codes=CODES[0]))))
        await anext(aiter(answers))
        for lm in two.lms:
            await lm.kill()
        await asyncio.sleep(0.3)
        stage.close()
        two.lms.append(FakeLm())
        await two.lms[-1].start(two.lms[0].port)
        await asyncio.sleep(1.5)
        assert two.lms[-1].held == 0


async def test_a_draining_replica_that_dies_before_there_is_room_elsewhere() -> None:
    async with Two() as two:
        two.pool.failover_s = 0.5

        async def drained_then_killed(two: Two, here: FakeLm, there: FakeLm) -> None:
            there.slots = 0
            here.drain()
            await asyncio.sleep(0.3)
            await here.kill()

        with pytest.raises(MeshError):
            await asyncio.wait_for(two.talk(drained_then_killed), 10)


async def test_a_closed_stage_does_not_move() -> None:
    async with Two() as two:
        stage = await two.open_stage()
        call = stage._lease.call
        stage.close()
        call.drain()  # the message was on its way
        await asyncio.sleep(0.2)
        assert [lm.held for lm in two.lms] == [0, 0]


async def test_a_row_that_is_opened_while_its_replica_begins_to_drain() -> None:
    async with Two() as two:
        for lm in two.lms:
            lm.opening_s = 0.3
        opening = asyncio.create_task(two.open_stage())
        await until(lambda: any(lm.held for lm in two.lms))
        (here,) = (lm for lm in two.lms if lm.held)
        here.drain()
        stage = await opening
        await until(lambda: not here.held)
        assert sorted(lm.held for lm in two.lms) == [0, 1]
        stage.close()
