"""Export and Replay through the gRPC edge: a whole gateway over fake services, whose model depends on every code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import moshimesh
import numpy as np
import pytest
import redis
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.events import Ready
from services.gateway.edges.grpc import GrpcEdge
from services.gateway.sessions.records import keys_of
from services.gateway.sessions.sealing import Handle
from services.gateway.trust.gate import OpenGate
from services.mesh.errors import SessionMoved, from_rpc_error
from tests.gateway.fake_codec import FRAME, RATE
from tests.gateway.fake_lm import DELAY
from tests.gateway.house import OPENING, House, spoken
from tests.gateway.redis_server import RedisServer
from tests.served import Served
from tests.until import until

FRAMES = 30
Held = tuple[moshimesh.Mesh, House, str, list[tuple[int, ...]], asyncio.Event]


@pytest.fixture
async def live(redis_server: RedisServer) -> AsyncIterator[Held]:
    """A mesh, its house, a call's handle, what the call was told, and what ends it."""
    end = asyncio.Event()
    told: list[tuple[int, ...]] = []
    opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def voice() -> AsyncIterator[bytes]:
        random = np.random.default_rng(1)
        for _ in range(FRAMES):
            yield (random.uniform(-0.5, 0.5, FRAME) * 32767).astype("<i2").tobytes()
        await end.wait()

    async def talk(mesh: moshimesh.Mesh) -> None:
        async for event in mesh.converse(voice(), pacing="offline", sample_rate_hertz=RATE, seed=3):
            if isinstance(event, moshimesh.Ready):
                opened.set_result(event.resume_handle)
            elif isinstance(event, moshimesh.Speech):
                told.append((event.text_token, *event.codes))

    async with House(redis_server.url) as house, Served(
            "gateway", GrpcEdge(house.desk, OpenGate(), stall_s=5.0), lambda channel: channel) as served, \
            moshimesh.connect(served.address) as mesh:
        talking = asyncio.create_task(talk(mesh))
        handle = await opened
        await until(lambda: len(told) == FRAMES - DELAY)
        yield mesh, house, handle, told, end
        end.set()
        await talking


async def _exported(mesh: moshimesh.Mesh, handle: str, steps: int) -> moshimesh.Recording:
    """As soon as so many steps have been written."""
    while (recording := await mesh.export(handle)).next_step < steps:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    return recording


async def test_a_recording_has_what_was_said_and_a_replay_says_it_again(live: Held) -> None:
    mesh, house, handle, told, _ = live
    recording = await _exported(mesh, handle, FRAMES)
    assert [recording.tokens(step) for step in range(DELAY, FRAMES)] == told
    replayed = [frame async for frame in mesh.replay(recording, audio=True)]
    assert [frame.step for frame in replayed] == list(range(FRAMES))
    assert [frame.text_token for frame in replayed[:DELAY]] == [None] * DELAY
    assert [(frame.text_token, *frame.codes) for frame in replayed[DELAY:]] == told
    assert all(len(frame.pcm) == 2 * FRAME for frame in replayed[DELAY:])
    await until(lambda: house.lm.held == 1)  # the live call's


async def test_a_conversation_that_is_forgotten_ends_and_leaves_nothing_of_what_was_said(redis_server: RedisServer
                                                                                        ) -> None:
    async with House(redis_server.url) as house, House(redis_server.url) as other, Served(
            "gateway", GrpcEdge(other.desk, OpenGate(), 5.0), lambda channel: channel) as served, moshimesh.connect(
                served.address) as mesh:
        said = spoken(0, FRAMES, asyncio.Event())
        async with contextlib.aclosing(house.hold(OPENING, said)) as events:
            ready = await anext(events)
            assert isinstance(ready, Ready)
            talking = asyncio.create_task(_all(events))
            await _exported(mesh, ready.resume_handle, 10)
            await mesh.forget(ready.resume_handle)  # at another gateway than the one that holds it
            with pytest.raises(SessionMoved):
                await talking
        for forgotten in (mesh.export, mesh.forget):
            with pytest.raises(moshimesh.MeshError) as caught:
                await forgotten(ready.resume_handle)
            assert caught.value.reason == "UNKNOWN_SESSION"
        record, journal = keys_of(Handle(ready.resume_handle).name)
        with redis.Redis.from_url(redis_server.url) as store:
            assert not store.exists(journal) and store.hget(record, "facts") is None
        await until(lambda: house.lm.held == 0 and not house.sessions.open)


async def _all(events: AsyncIterator[object]) -> None:
    async for _ in events:
        pass


async def test_a_replay_without_audio_needs_no_codec(live: Held) -> None:
    mesh, _, handle, told, _ = live
    recording = await _exported(mesh, handle, FRAMES)
    replayed = [frame async for frame in mesh.replay(recording)]
    assert [(frame.text_token, *frame.codes) for frame in replayed[DELAY:]] == told
    assert {frame.pcm for frame in replayed} == {b""}


async def test_a_replay_survives_the_loss_of_its_replica(live: Held, redis_server: RedisServer) -> None:
    mesh, house, handle, told, _ = live
    recording = await _exported(mesh, handle, FRAMES)
    replayed = []
    async for frame in mesh.replay(recording):
        replayed.append(frame)
        if frame.step == 10:
            await house.replace_lm()
    assert [(frame.text_token, *frame.codes) for frame in replayed[DELAY:]] == told


async def test_exports_of_parts_make_the_whole(live: Held, tmp_path: Path) -> None:
    mesh, _, handle, told, _ = live
    whole = await _exported(mesh, handle, FRAMES)
    part = await mesh.export(handle, from_step=10)
    assert (part.first_step, part.next_step) == (10, FRAMES)
    part.save(tmp_path / "part")
    loaded = moshimesh.Recording.load(tmp_path / "part")
    assert (tmp_path / "part").stat().st_mode & 0o077 == 0
    assert [loaded.tokens(step) for step in range(10, FRAMES)] == told[10 - DELAY:]
    whole.extend(loaded)  # nothing new in it
    assert whole.next_step == FRAMES


@pytest.mark.parametrize("handle", ["", "nobody's", "A" * 5000])
async def test_a_handle_of_nobody_exports_nothing(live: Held, handle: str) -> None:
    with pytest.raises(moshimesh.MeshError) as caught:
        await live[0].export(handle)
    assert caught.value.reason == "UNKNOWN_SESSION"


async def test_a_conversation_that_has_ended_exports_nothing(live: Held) -> None:
    mesh, _, handle, _, end = live
    await _exported(mesh, handle, 1)
    end.set()
    with pytest.raises(moshimesh.MeshError) as caught:
        for _ in range(50):
            await mesh.export(handle)
            await asyncio.sleep(0.2)
    assert caught.value.reason in ("UNKNOWN_SESSION", "TOO_MANY_RESUMES")


@pytest.mark.parametrize("codes", [[1, 2, 3], [70_000] * 2 * FRAMES])
async def test_a_recording_that_is_wrong_is_refused(live: Held, codes: list[int]) -> None:
    mesh, house, handle, _, _ = live
    recording = await _exported(mesh, handle, FRAMES)
    del recording._all.steps.user_codes[:]
    recording._all.steps.user_codes.extend(codes)
    with pytest.raises(moshimesh.MeshError) as caught:
        async for _ in mesh.replay(recording):
            pass
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_RECORDING")
    await until(lambda: house.lm.held == 1)


@pytest.mark.parametrize(("settings", "reason"), [({"idle_s": 0.3}, "IDLE_CALLER"),
                                                  ({"longest_call_s": 0.3}, "CALL_TOO_LONG")])
async def test_a_replay_that_says_nothing_or_goes_on_for_ever_loses_its_slot(
        redis_server: RedisServer, settings: dict[str, float], reason: str) -> None:
    async with House(redis_server.url, **settings) as house, Served(  # type: ignore[arg-type]
            "gateway", GrpcEdge(house.desk, OpenGate(), 5.0), conversation_pb2_grpc.ConversationServiceStub) as served:
        call = served.stub.Replay()
        await call.write(conversation_pb2.ReplayRequest(config=conversation_pb2.ReplayConfig()))
        assert (await call.read()).HasField("ready")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert from_rpc_error(caught.value, "gateway").reason == reason
        await until(lambda: house.lm.held == 0)


async def test_a_past_that_no_export_gives_is_refused_before_it_is_read(live: Held) -> None:
    past = conversation_pb2.RecordedSteps(controls=[lm_pb2.StepControlsAt(step=step) for step in range(1000)])
    call = live[0]._stubs[0].Replay()
    await call.write(conversation_pb2.ReplayRequest(config=conversation_pb2.ReplayConfig(past=past)))
    with pytest.raises(grpc.aio.AioRpcError, match="a past may have"):
        await call.read()


async def test_a_replay_that_is_given_up_gives_its_slot_back(live: Held) -> None:
    mesh, house, handle, _, _ = live
    recording = await _exported(mesh, handle, FRAMES)
    replay = mesh.replay(recording, sampling=lm_pb2.Sampling(seed=9))
    await anext(replay)
    await replay.aclose()
    await until(lambda: house.lm.held == 1)
