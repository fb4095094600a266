"""Good callers beside hostile ones, and more callers than there is room for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.gateway.v1 import conversation_pb2_grpc
from moshimesh.lm.v1 import lm_pb2

from services.gateway.edges.grpc import GrpcEdge
from services.gateway.edges.web.chat.edge import ChatEdge
from services.gateway.edges.web.live.edge import LiveEdge
from services.gateway.edges.web.pcm.edge import PcmEdge
from services.gateway.edges.web.realtime.edge import RealtimeEdge
from services.gateway.trust.gate import OpenGate
from tests.gateway.door import Gateway, codec, lm
from tests.gateway.edges.hostile import attacks, repeated
from tests.gateway.fake_codec import RATE, FakeCodec
from tests.gateway.fake_lm import DELAY, FakeLm
from tests.gateway.house import House, expected, frame
from tests.gateway.redis_server import RedisServer
from tests.gateway.web_door import WebDoor
from tests.served import Served
from tests.until import until

GOOD, FRAMES = 8, 40
# What the good callers' slowest of a hundred frames may wait longer than without the others. The attacker shares this
# process and its event loop, so it is charged with its own work, too.
WORSE_S = 0.5


def note(**figures: float) -> None:
    """For `make trust`."""
    if path := os.environ.get("TRUST_FIGURES"):
        with Path(path).open("a") as file:
            file.write(json.dumps(figures) + "\n")


async def converse(stub: Any, waits_s: list[float]) -> list[list[int]]:
    """A greedy call: a frame as soon as the last one is answered. The tokens that it heard."""
    call = stub.Converse()
    await call.write(pb.ConverseRequest(config=pb.ConverseConfig(
        sample_rate_hertz=RATE, pacing=pb.PACING_OFFLINE, sampling=lm_pb2.Sampling(seed=1))))
    assert (await call.read()).HasField("ready")
    said: list[list[int]] = []
    for number in range(FRAMES):
        began = time.monotonic()
        await call.write(pb.ConverseRequest(audio=pb.AudioChunk(pcm=frame(number).tobytes())))
        if number >= DELAY:
            said.append(await _heard(call))
            waits_s.append(time.monotonic() - began)
    await call.done_writing()
    said += [await _heard(call) for _ in range(DELAY)]
    assert (await call.read()).HasField("summary")
    return said


async def _heard(call: Any) -> list[int]:
    while not (response := await call.read()).HasField("speech"):
        assert not response.HasField("ended"), response
    return [response.speech.text_token, *response.speech.codes]


@pytest.fixture
async def house(redis_server: RedisServer) -> AsyncIterator[House]:
    async with House(redis_server.url, codec=FakeCodec(GOOD + 4), lm=FakeLm(GOOD + 4)) as house:
        yield house


@pytest.mark.slow
async def test_eight_callers_beside_a_stream_of_hostile_ones_hear_what_they_would_hear_alone(house: House) -> None:
    gate = OpenGate()
    served = Served("gateway", GrpcEdge(house.desk, gate, 5.0), conversation_pb2_grpc.ConversationServiceStub)
    async with served, WebDoor(lambda sockets: [
            *PcmEdge(house.desk, gate, sockets).routes, *ChatEdge(house.desk, gate, sockets).routes,
            *RealtimeEdge(house.desk, gate, sockets, 60.0).routes,
            *LiveEdge(house.desk, gate, sockets, 60.0).routes]) as web:
        alone_s: list[float] = []
        alone = await asyncio.gather(*(converse(served.stub, alone_s) for _ in range(GOOD)))
        assert alone == [expected(FRAMES)] * GOOD

        over, beside_s = asyncio.Event(), list[float]()
        channel = grpc.aio.insecure_channel(served.address)
        hostile = asyncio.create_task(repeated(attacks(channel, web), over, 0.02))
        done: dict[str, int] = {}
        try:
            for _ in range(8):  # so that every attack has had its turn
                beside = await asyncio.gather(*(converse(served.stub, beside_s) for _ in range(GOOD)))
                assert beside == alone
        finally:
            over.set()
            done = await hostile
            await channel.close()
        assert all(done.values())
        await until(lambda: house.lm.held == 0 and not any(house.codec.held.values()))
        p99_alone_s, p99_beside_s = np.percentile(alone_s, 99), np.percentile(beside_s, 99)
        note(isolation_attacks=sum(done.values()), isolation_p99_alone_s=p99_alone_s,
             isolation_p99_beside_s=p99_beside_s, isolation_tokens_equal=1)
        assert p99_beside_s < p99_alone_s + WORSE_S
        assert list(house.desk.disagreements()) == []


SLOTS = 4
REFUSED_S = 0.1  # within which who gets no place is told so; see the test
LINE = 5  # of Gateway


@pytest.mark.parametrize("times", [2, 5])
async def test_more_callers_than_there_is_room_for(times: int) -> None:
    async with Gateway([codec("mimi", SLOTS)], [lm("one", "mimi", SLOTS)]) as gateway:
        await _wave(gateway, 1)  # whatever is made once is made

        async def free() -> bool:
            return (await gateway.desk.info()).slots_free == SLOTS and gateway.desk.calls == 0

        await until(free)  # its caller has heard the end before its slot is back
        tasks = len(asyncio.all_tasks())
        admitted, refused_s = await _wave(gateway, times * SLOTS)
        assert admitted >= SLOTS + min(LINE, (times - 1) * SLOTS)
        assert admitted + len(refused_s) == times * SLOTS
        if refused_s:
            note(overload_times=times, overload_refused=len(refused_s), overload_refused_p50_s=np.median(refused_s),
                 overload_refused_most_s=max(refused_s))
            # The callers share this process: what the median took is the mesh's, what the last took is mostly theirs.
            assert np.median(refused_s) < 5 * REFUSED_S

        async def as_before() -> bool:
            return await free() and len(asyncio.all_tasks()) <= tasks

        await until(as_before, 5)
        assert list(gateway.desk.disagreements()) == []


async def _wave(gateway: Gateway, callers: int) -> tuple[int, list[float]]:
    """So many calls at once: how many were answered to their end, and after how long the others were refused."""
    refused_s: list[float] = []

    async def one() -> int:
        began = time.monotonic()
        call = gateway.stub.Converse()
        try:
            await call.write(pb.ConverseRequest(config=pb.ConverseConfig(
                sample_rate_hertz=24_000, pacing=pb.PACING_OFFLINE)))
            while not (response := await call.read()).HasField("ready"):
                if response.HasField("ended"):
                    assert response.ended.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], response
                    refused_s.append(time.monotonic() - began)
                    return 0
            for number in range(10):
                await call.write(pb.ConverseRequest(audio=pb.AudioChunk(pcm=bytes(7680))))
                while number and not (await call.read()).HasField("speech"):
                    pass
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
            assert await call.code() is grpc.StatusCode.OK
            return 1
        finally:
            with contextlib.suppress(grpc.RpcError):
                await call.done_writing()
            call.cancel()

    return sum(await asyncio.gather(*(one() for _ in range(callers)))), refused_s
