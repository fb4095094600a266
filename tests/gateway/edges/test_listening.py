"""A second reader of a live call, through the gRPC edge: gateways over fake services; a token depends on every code."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import moshimesh
import numpy as np
import pytest
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.gateway.v1 import conversation_pb2_grpc

from services.gateway.calls.callers import Caller
from services.gateway.calls.listening import MOST_LISTENERS, MOST_WAITING
from services.gateway.edges.grpc import GrpcEdge
from services.gateway.sessions.grants import make_grant
from services.gateway.sessions.sealing import Handle
from services.gateway.trust.gate import OpenGate
from services.mesh.errors import Unauthenticated
from tests.gateway import door
from tests.gateway.fake_codec import CODEBOOKS, FRAME, RATE, FakeCodec
from tests.gateway.fake_lm import DELAY
from tests.gateway.house import House
from tests.gateway.redis_server import RedisServer
from tests.served import Served
from tests.until import until

FRAMES = 30


def _voice() -> list[bytes]:
    random = np.random.default_rng(1)
    return [random.uniform(-0.5, 0.5, FRAME).astype("<f4").tobytes() for _ in range(FRAMES)]


class Call:
    """A call that is being held: it says as much as a test lets it."""

    def __init__(self, mesh: moshimesh.Mesh, key: str = "") -> None:
        self.said: list[moshimesh.Speech] = []
        self.told: list[moshimesh.ConversationEvent] = []
        self.handle = ""
        self._mesh, self._key, self._may_say = mesh, key, asyncio.Semaphore(0)
        self._talking = asyncio.create_task(self._talk())

    def say(self, frames: int) -> None:
        for _ in range(frames):
            self._may_say.release()

    async def opened(self) -> str:
        await until(lambda: self.handle)
        return self.handle

    async def ended(self) -> None:
        await self._talking

    async def hang_up(self) -> None:
        self._talking.cancel()
        await asyncio.gather(self._talking, return_exceptions=True)

    async def _talk(self) -> None:
        async def voice() -> AsyncIterator[bytes]:
            for piece in _voice():
                await self._may_say.acquire()
                yield piece

        async for event in self._mesh.converse(voice(), encoding="f32", pacing="offline", sample_rate_hertz=RATE,
                                               seed=3, api_key=self._key):
            if isinstance(event, moshimesh.Ready):
                self.handle = event.resume_handle
            elif isinstance(event, moshimesh.Speech):
                self.said.append(event)
            elif isinstance(event, moshimesh.ConversationEvent):
                self.told.append(event)


class Listener:
    """Listens until the call is over."""

    def __init__(self, mesh: moshimesh.Mesh, grant: str, *, audio: bool = True, search_s: float = 0.0,
                 key: str = "") -> None:
        self.heard: list[object] = []
        self._listening = asyncio.create_task(self._listen(mesh.listen(
            grant, encoding="f32", audio=audio, search_s=search_s, api_key=key)))

    def all(self, kind: type) -> list:  # type: ignore[type-arg]
        return [item for item in self.heard if isinstance(item, kind)]

    async def opened(self) -> None:
        await until(lambda: self.heard or self._listening.done())

    async def ended(self) -> None:
        await asyncio.wait_for(self._listening, 20)

    async def leave(self) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)

    async def _listen(self, items: AsyncIterator[object]) -> None:
        async for item in items:
            self.heard.append(item)


@contextlib.asynccontextmanager
async def gateway(redis_server: RedisServer, gate: OpenGate | None = None) -> AsyncIterator[tuple[House, str]]:
    """A gateway, and its address."""
    codec = FakeCodec()
    codec.speech_table = np.full((CODEBOOKS, 64), 40, np.int8).tobytes()
    async with House(redis_server.url, codec=codec) as house, Served(
            "gateway", GrpcEdge(house.desk, gate or OpenGate(), stall_s=5.0), lambda channel: channel) as served:
        yield house, served.address


@pytest.fixture
async def mesh(redis_server: RedisServer) -> AsyncIterator[moshimesh.Mesh]:
    async with gateway(redis_server) as (_, address), moshimesh.connect(address) as mesh:
        yield mesh


async def _rest(call: Any) -> list[Any]:
    """What is still to come of a call."""
    responses = []
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)
    return responses


async def _refused(mesh: moshimesh.Mesh, grant: str) -> moshimesh.MeshError:
    with pytest.raises(moshimesh.MeshError) as caught:
        await anext(mesh.listen(grant, search_s=0))
    return caught.value


async def test_a_listener_gets_what_both_sides_say_bit_for_bit_and_the_call_does_not_notice(mesh: moshimesh.Mesh
                                                                                           ) -> None:
    alone = Call(mesh)
    alone.say(FRAMES)
    await alone.ended()
    call = Call(mesh)
    listener = Listener(mesh, await mesh.grant(await call.opened()))
    silent = Listener(mesh, await mesh.grant(call.handle), audio=False)
    await listener.opened()
    await silent.opened()
    call.say(FRAMES)
    await call.ended()
    await listener.ended()
    await silent.ended()

    def whole(speech: moshimesh.Speech) -> tuple[object, ...]:
        return speech.sequence, speech.pcm, speech.text, speech.text_token, tuple(speech.codes)

    assert [whole(one) for one in call.said] == [whole(one) for one in alone.said]
    assert len(call.said) == FRAMES
    assert [whole(one) for one in listener.all(moshimesh.Speech)] == [whole(one) for one in call.said]
    assert listener.all(moshimesh.ConversationEvent) == call.told == alone.told != []
    frames = [*_voice(), *[bytes(4 * FRAME)] * DELAY]
    assert [(one.sequence, one.pcm) for one in listener.all(moshimesh.UserFrame)] == list(enumerate(frames))
    opened = listener.heard[0]
    assert isinstance(opened, moshimesh.Listening)
    assert (opened.sample_rate_hertz, opened.samples_per_frame, opened.delay_frames) == (RATE, FRAME, DELAY)
    assert listener.heard[-1] == silent.heard[-1] == moshimesh.CallOver("completed")
    assert not silent.all(moshimesh.UserFrame)
    assert [whole(one) for one in silent.all(moshimesh.Speech)] == [
        whole(dataclasses.replace(one, pcm=b"")) for one in call.said]


async def test_a_frame_of_the_user_comes_before_its_answer_and_nothing_before_the_listener_came(mesh: moshimesh.Mesh
                                                                                                ) -> None:
    call = Call(mesh)
    call.say(10)
    grant = await mesh.grant(await call.opened())
    await until(lambda: len(call.said) == 10 - DELAY)
    listener = Listener(mesh, grant)
    await listener.opened()
    call.say(FRAMES - 10)
    await call.ended()
    await listener.ended()
    assert [one.sequence for one in listener.all(moshimesh.UserFrame)] == list(range(10, FRAMES + DELAY))
    order = {(type(one), one.sequence): at for at, one in enumerate(listener.heard)
             if isinstance(one, moshimesh.UserFrame | moshimesh.Speech)}
    assert all(order[moshimesh.UserFrame, number] < order[moshimesh.Speech, number]
               for number in range(10, FRAMES + DELAY))


async def test_one_that_does_not_read_loses_the_oldest_and_is_told_how_many() -> None:
    frames, of_a_frame = 600, 2  # messages: the user's and the model's
    async with door.Gateway([door.codec("codec", 2)], [door.lm("model", "codec", 2)]) as opened:
        call = opened.stub.Converse()
        await call.write(pb.ConverseRequest(config=pb.ConverseConfig(
            sample_rate_hertz=24_000, pacing=pb.PACING_OFFLINE)))
        ready = (await call.read()).ready
        grant = (await opened.stub.Grant(pb.GrantRequest(resume_handle=ready.resume_handle))).grant
        listening = opened.stub.Listen(pb.ListenRequest(grant=grant))
        assert (await listening.read()).HasField("listening")
        answering = asyncio.create_task(_rest(call))
        for _ in range(frames):
            await call.write(pb.ConverseRequest(audio=pb.AudioChunk(pcm=bytes(4 * 1920))))
        await call.done_writing()
        assert sum(response.HasField("speech") for response in await answering) == frames
        came = await _rest(listening)
    missed = [response.missed.messages for response in came if response.HasField("missed")]
    assert len(missed) == 1 and missed[0] > MOST_WAITING
    assert missed[0] + sum(not response.HasField("missed") for response in came) >= of_a_frame * frames
    at = next(at for at, response in enumerate(came) if response.HasField("missed"))
    after = [response for response in came[at + 1:] if not response.HasField("event")]
    assert len(came[at + 1:]) == MOST_WAITING and after[-1].over.reason == "completed"
    assert after[-2].speech.context.sequence == frames


async def test_so_many_may_listen_and_no_more_until_one_leaves(mesh: moshimesh.Mesh) -> None:
    call = Call(mesh)
    grant = await mesh.grant(await call.opened())
    listeners = [Listener(mesh, grant) for _ in range(MOST_LISTENERS)]
    for listener in listeners:
        await listener.opened()
    error = await _refused(mesh, grant)
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_LISTENERS")
    assert error.retry_after_s
    await listeners.pop().leave()

    async def again() -> bool:
        later = Listener(mesh, grant)
        await later.opened()
        await (later.leave() if later.heard else asyncio.sleep(0.05))
        return bool(later.heard)

    await until(again)
    call.say(FRAMES)
    await call.ended()
    for listener in listeners:
        await listener.ended()


async def test_grants_that_do_not_hold_are_refused_by_name(mesh: moshimesh.Mesh, caplog: pytest.LogCaptureFixture
                                                           ) -> None:
    caplog.set_level(logging.DEBUG)
    call = Call(mesh)
    handle = Handle(await call.opened())
    soon = round(time.time() * 1000) + 60_000
    good, stranger = make_grant(handle, soon), make_grant(Handle.new(), soon)
    forged = good[:30] + stranger[30:]
    for grant, code, reason in (
            ("", "PERMISSION_DENIED", "BAD_GRANT"), ("lg_", "PERMISSION_DENIED", "BAD_GRANT"),
            (handle.text, "PERMISSION_DENIED", "BAD_GRANT"), ("lg_\x7f\u00e9", "PERMISSION_DENIED", "BAD_GRANT"),
            (forged, "PERMISSION_DENIED", "BAD_GRANT"), (stranger, "NOT_FOUND", "UNKNOWN_SESSION"),
            (make_grant(handle, round(time.time() * 1000)), "PERMISSION_DENIED", "GRANT_EXPIRED")):
        error = await _refused(mesh, grant)
        assert (error.code.name, error.reason) == (code, reason), grant
    for text in ("", "guessed", good, Handle.new().text):
        with pytest.raises(moshimesh.MeshError) as caught:
            await mesh.grant(text)
        assert caught.value.reason == "UNKNOWN_SESSION"
    for lives_s in (0.0, 7201.0):
        with pytest.raises(moshimesh.MeshError) as caught:
            await mesh.grant(handle.text, lives_s=lives_s)
        assert caught.value.reason == "BAD_GRANT_TIME"
    listener = Listener(mesh, good)
    await listener.opened()
    call.say(FRAMES)
    await call.ended()
    await listener.ended()
    assert (await _refused(mesh, good)).reason == "UNKNOWN_SESSION"
    assert not any(secret in caplog.text for secret in (good, stranger, forged, handle.text))


async def test_a_call_that_is_cut_off_ends_the_listener_which_may_listen_again_when_it_is_resumed(
        redis_server: RedisServer) -> None:
    async with gateway(redis_server) as (house, address), moshimesh.connect(address) as mesh:
        call = Call(mesh)
        grant = await mesh.grant(await call.opened())
        listener = Listener(mesh, grant)
        await listener.opened()
        call.say(5)
        await until(lambda: len(call.said) == 5 - DELAY)
        await call.hang_up()
        with pytest.raises(moshimesh.MeshError, match=r"has ended here \(cancelled\).*same grant") as caught:
            await listener.ended()
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "CALL_NOT_HERE")
        await until(lambda: not house.sessions._live)
        assert "was cut off" in str(await _refused(mesh, grant))
        later = Listener(mesh, grant, search_s=20)
        await _resumed(address, call.handle, later)
        await later.ended()
        assert later.heard[-1] == moshimesh.CallOver("completed")
        assert [one.sequence for one in later.all(moshimesh.Speech)][-1] == FRAMES + DELAY - 1


async def _resumed(address: str, handle: str, listener: Listener) -> None:
    """Go on with a call from its sixth frame on, when somebody listens, until its end."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = conversation_pb2_grpc.ConversationServiceStub(channel).Converse()
        await call.write(pb.ConverseRequest(config=pb.ConverseConfig(
            sample_rate_hertz=RATE, pacing=pb.PACING_OFFLINE, resume_handle=handle, first_sequence=5)))
        assert (await call.read()).HasField("ready")
        await listener.opened()
        for piece in _voice()[5:]:
            await call.write(pb.ConverseRequest(audio=pb.AudioChunk(pcm=piece)))
        await call.done_writing()
        await _rest(call)


async def test_a_listener_follows_a_call_to_another_gateway_with_the_same_grant(redis_server: RedisServer) -> None:
    async with gateway(redis_server) as (first, one), gateway(redis_server) as (_, other), \
            moshimesh.connect(f"{one},{other}") as both, moshimesh.connect(other) as elsewhere:
        call = Call(both)
        grant = await both.grant(await call.opened())
        await until(lambda: first.sessions.lag_s == 0)
        listener = Listener(both, grant, search_s=20)
        await listener.opened()

        async def known() -> bool:
            return f"gateway {id(first)}" in str(await _refused(elsewhere, grant))

        await until(known)  # when the call is written
        call.say(10)
        await until(lambda: len(listener.all(moshimesh.Speech)) == 10 - DELAY)
        first.desk.drain()
        await until(lambda: len(listener.all(moshimesh.Listening)) == 2)
        call.say(FRAMES - 10)
        await call.ended()
        await listener.ended()
        assert [speech.sequence for speech in call.said] == list(range(DELAY, FRAMES + DELAY))
        assert [speech.sequence for speech in listener.all(moshimesh.Speech)] == list(range(DELAY, FRAMES + DELAY))
        assert listener.heard[-1] == moshimesh.CallOver("completed")


async def test_a_listener_does_not_notice_that_the_language_model_was_lost(redis_server: RedisServer) -> None:
    async with gateway(redis_server) as (house, address), moshimesh.connect(address) as mesh:
        call = Call(mesh)
        listener = Listener(mesh, await mesh.grant(await call.opened()))
        await listener.opened()
        call.say(10)
        await until(lambda: len(call.said) == 10 - DELAY)
        await house.replace_lm()
        call.say(FRAMES - 10)
        await call.ended()
        await listener.ended()
        assert [speech.codes for speech in listener.all(moshimesh.Speech)] == [speech.codes for speech in call.said]
        assert len(call.said) == FRAMES and not listener.all(moshimesh.Missed)


class Keys(OpenGate):
    """Lets in who has any key."""

    closed = True

    def __init__(self) -> None:
        super().__init__()
        self.revoked: set[str] = set()

    async def caller(self, credential: str, address: str, edge: str) -> Caller:
        """See Gate."""
        if not credential:
            raise Unauthenticated("NO_CREDENTIAL", "who calls?")
        return dataclasses.replace(Caller.with_key(credential, address, edge),
                                   valid=lambda: credential not in self.revoked)


async def test_a_grant_is_enough_for_anybody_whom_the_gate_lets_in(redis_server: RedisServer) -> None:
    gate = Keys()
    async with gateway(redis_server, gate) as (_, address), moshimesh.connect(address) as mesh:
        call = Call(mesh, key="owner")
        grant = await mesh.grant(await call.opened(), api_key="owner")
        for refused in (mesh.grant(call.handle), anext(mesh.listen(grant, search_s=0))):
            with pytest.raises(moshimesh.MeshError) as caught:
                await refused
            assert caught.value.reason == "NO_CREDENTIAL"
        listener = Listener(mesh, grant, key="another")
        await listener.opened()
        gate.revoked.add("another")
        call.say(1)
        with pytest.raises(moshimesh.MeshError) as caught:
            await listener.ended()
        assert caught.value.reason == "KEY_REVOKED"
        call.say(FRAMES)
        await call.ended()
        assert len(call.said) == FRAMES
