"""What a gateway does without while its callers are served late, in which order, and that no caller can bring it on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import grpc
import numpy as np
import pytest
from moshimesh.audio.v1 import audio_pb2
from moshimesh.gateway.v1 import conversation_pb2 as pb

from harness.null_services import NullEngine
from services.gateway.calls.overload import (
    FEW_FRAMES,
    OPENING_EVERY_S,
    OPENING_WAITS_S,
    Overload,
    Punctuality,
    Watch,
)
from services.mesh.errors import MeshError, Overloaded, from_rpc_error
from tests.gateway.door import Gateway, codec, lm
from tests.until import until

FRAME_NANOS, FRAME_S = 80_000_000, 0.08
CALLERS = 4


def period(overload: Overload, late: int, frames: int = 100) -> int:
    """The level after a period with so many frames."""
    for number in range(frames):
        overload.answered(late=number < late)
    overload.step()
    return overload.level


def test_the_level_rises_and_falls_step_by_step_and_stays_in_between() -> None:
    overload = Overload()
    assert [period(overload, late) for late in (0, 20, 60, 80, 100, 60, 30, 90, 100)] == [0, 0, 0, 1, 2, 2, 2, 3, 3]
    assert [period(overload, late) for late in (60, 25, 26, 0, 0, 0)] == [3, 2, 2, 1, 0, 0]


def test_a_few_late_frames_say_nothing_and_without_frames_nobody_waits() -> None:
    overload = Overload()
    assert period(overload, FEW_FRAMES - 1, FEW_FRAMES - 1) == 0
    assert period(overload, FEW_FRAMES, FEW_FRAMES) == 1
    assert period(overload, 1, 1) == 1  # an engine that hardly answers has not recovered
    assert period(overload, 0, 0) == 0


def test_what_is_spared_comes_in_order() -> None:
    overload, seen = Overload(), []
    for _ in range(4):
        seen.append((overload.spares_traces, overload.spares_prefill, overload.refuses))
        period(overload, 100)
    assert seen == [(False, False, False), (True, False, False), (True, True, False), (True, True, True)]
    with pytest.raises(Overloaded):
        overload.check()


def test_rows_with_a_past_are_opened_one_after_the_other_and_none_waits_for_long() -> None:
    overload = Overload(now=lambda: 100.0)
    assert [overload.opening_waits_s() for _ in range(3)] == [0, 0, 0]
    for _ in range(2):
        period(overload, 100)
    waits = [overload.opening_waits_s() for _ in range(40)]
    assert waits[:3] == [0, OPENING_EVERY_S, 2 * OPENING_EVERY_S]
    assert max(waits) == OPENING_WAITS_S == waits[-1]


def answer(number: int, at_s: float, took_s: float) -> audio_pb2.FrameContext:
    context = audio_pb2.FrameContext(sequence=number)
    received = 10**18 + round(at_s * 1e9)
    context.hops.add(hop=audio_pb2.HOP_GATEWAY_INGEST, received_unix_nanos=received)
    context.hops.add(hop=audio_pb2.HOP_CODEC_DECODE, returned_unix_nanos=received + round(took_s * 1e9))
    context.hops.add(hop=audio_pb2.HOP_GATEWAY_EMIT, finished_unix_nanos=received + 10**10)
    return context


def test_who_sends_all_at_once_or_reads_late_is_not_served_late() -> None:
    overload = Overload()
    hasty, slow, steady = (Punctuality(overload, FRAME_NANOS) for _ in range(3))
    for number in range(100):  # ten frames at once, each behind the one before
        hasty.answered(answer(number, number // 10 * 0.8, 0.03 * (1 + number % 10)))
    overload.step()
    assert overload.level == 0
    for number in range(100):
        slow.answered(answer(number, number * FRAME_S, 0.05))  # each is read ten seconds later
    overload.step()
    assert overload.level == 0
    for number in range(100):
        steady.answered(answer(number, number * FRAME_S, 0.1))
    overload.step()
    assert overload.level == 1


class SlowEngine(NullEngine):
    """Its steps take longer than a frame, as long as they shall."""

    step_s = 1.25 * FRAME_S

    def step(self, rows: Sequence[int], frames: np.ndarray) -> np.ndarray:
        time.sleep(self.step_s)
        return super().step(rows, frames)


async def asked(gateway: Gateway, handle: str = "") -> pb.ConverseReady:
    """What a new or resumed call is told first. Raises MeshError."""
    call = gateway.stub.Converse()
    try:
        await call.write(pb.ConverseRequest(config=pb.ConverseConfig(
            sample_rate_hertz=24_000, pacing=pb.PACING_LIVE, resume_handle=handle)))
        response = await call.read()
        if not response.HasField("ready"):
            await call.read()  # the status follows
        return response.ready
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, "gateway") from None
    finally:
        call.cancel()


async def talk(gateway: Gateway, handles: list[str]) -> None:
    """A live call at the pace of speech, until it is cancelled or resumed elsewhere."""
    call = gateway.stub.Converse()
    try:
        await call.write(pb.ConverseRequest(config=pb.ConverseConfig(
            sample_rate_hertz=24_000, pacing=pb.PACING_LIVE)))
        handles.append((await call.read()).ready.resume_handle)
        reading = asyncio.create_task(_drained(call))
        while not reading.done():
            await call.write(pb.ConverseRequest(audio=pb.AudioChunk(pcm=bytes(2 * 1920))))
            await asyncio.sleep(FRAME_S)
        await reading
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the latter when it ends during a write
        assert await call.code() is grpc.StatusCode.ABORTED
    finally:
        call.cancel()


async def _drained(call: grpc.aio.StreamStreamCall) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


@contextlib.contextmanager
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The levels that the log tells of."""
    levels: list[str] = []
    with caplog.at_level(logging.INFO, "services.gateway.calls.overload"):
        yield levels
        levels += [record.message.partition(":")[0] for record in caplog.records if "overload level" in record.message]


@contextlib.asynccontextmanager
async def overloaded(engine: SlowEngine) -> AsyncIterator[tuple[Gateway, list[str]]]:
    """A gateway whose CALLERS callers are all late, and their handles."""
    async with Gateway([codec("mimi", CALLERS + 2)], [lm("one", "mimi", CALLERS + 2, engine)]) as gateway:
        watch, handles = Watch(gateway.overload, 0.3), list[str]()
        talking = [asyncio.create_task(talk(gateway, handles)) for _ in range(CALLERS)]
        try:
            yield gateway, handles
        finally:
            await watch.close()
            for task in talking:
                task.cancel()
            for ended in await asyncio.gather(*talking, return_exceptions=True):
                assert ended is None or isinstance(ended, asyncio.CancelledError)


async def test_an_engine_that_is_too_slow_for_its_callers_gets_no_new_ones_until_it_keeps_up(
        caplog: pytest.LogCaptureFixture) -> None:
    engine = SlowEngine(CALLERS + 2, np.zeros(9, np.int64), 1)
    with logged(caplog) as levels:
        async with overloaded(engine) as (gateway, handles):
            await until(lambda: gateway.overload.refuses)
            with pytest.raises(MeshError) as refused:
                await asked(gateway)
            assert refused.value.reason == "OVERLOADED"
            cut_off = handles[0]
            assert (await asked(gateway, cut_off)).resume_handle == cut_off
            engine.step_s = 0.0
            await until(lambda: gateway.overload.level == 0)
            assert (await asked(gateway)).session_id
    assert levels[:3] == [f"overload level {level}" for level in (1, 2, 3)] and levels[-1] == "overload level 0"
