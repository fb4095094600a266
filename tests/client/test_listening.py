"""The client and its command as listeners, against gateways that say what a test wants."""

from __future__ import annotations

import json
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import moshimesh
import numpy as np
import pytest
from moshimesh.audio.v1 import audio_pb2
from moshimesh.gateway.v1 import conversation_pb2 as pb

from tests.client.gateway import RATE, SAMPLES_PER_FRAME, Gateway, serving
from tests.client.test_cli import _moshimesh

GRANT = "lg_secret"


def _pcm(value: int) -> bytes:
    return np.full(SAMPLES_PER_FRAME, value, "<i2").tobytes()


class Tells(Gateway):
    """A call of the frames 7 to 11: the tenth is skipped, and the last has no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.listened: list[pb.ListenRequest] = []

    async def Grant(self, request: pb.GrantRequest, context: grpc.aio.ServicerContext) -> pb.GrantResponse:
        return pb.GrantResponse(grant=f"{GRANT} of {request.resume_handle} for {request.lives_ms} ms")

    async def Listen(self, request: pb.ListenRequest, context: grpc.aio.ServicerContext
                     ) -> AsyncIterator[pb.ListenResponse]:
        self.listened.append(request)
        yield pb.ListenResponse(listening=pb.Listening(
            session_id="a call", sample_rate_hertz=RATE, samples_per_frame=SAMPLES_PER_FRAME, delay_frames=1))
        yield pb.ListenResponse(event=pb.ConversationEvent(kind=pb.EVENT_KIND_INTERRUPTED, sequence=6, at_ms=480))
        for number in (7, 8, 9, 11):
            yield pb.ListenResponse(user=pb.UserFrame(sequence=number, pcm=_pcm(number)))
            if number != 11:
                yield pb.ListenResponse(speech=pb.SpeechFrame(
                    context=audio_pb2.FrameContext(sequence=number), pcm=_pcm(-number), text=f" {number}"))
        yield pb.ListenResponse(missed=pb.Missed(messages=3))
        yield pb.ListenResponse(over=pb.CallOver(reason="completed"))


class HasNot(Tells):
    """Does not hold the call, for one reason or another."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__()
        self._code = code

    async def Listen(self, request: pb.ListenRequest, context: grpc.aio.ServicerContext
                     ) -> AsyncIterator[pb.ListenResponse]:
        self.listened.append(request)
        await context.abort(self._code, "not here", (("moshimesh-reason", "A_REASON"),))
        yield pb.ListenResponse()


class Moves(Tells):
    """Its call moves away."""

    async def Listen(self, request: pb.ListenRequest, context: grpc.aio.ServicerContext
                     ) -> AsyncIterator[pb.ListenResponse]:
        self.listened.append(request)
        yield pb.ListenResponse(listening=pb.Listening(session_id="the same call"))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "moved")


async def test_a_listener_looks_for_the_gateway_that_holds_the_call_and_follows_it() -> None:
    without, moves, tells = HasNot(grpc.StatusCode.UNAVAILABLE), Moves(), Tells()
    async with serving(without) as one, serving(moves) as other, serving(tells) as third, \
            moshimesh.connect(f"{one},{other},{third}") as mesh:
        came = [item async for item in mesh.listen(GRANT)]
    assert [len(gateway.listened) for gateway in (without, moves, tells)] == [1, 1, 1]
    assert [item.session_id for item in came if isinstance(item, moshimesh.Listening)] == ["the same call", "a call"]
    assert came[-1] == moshimesh.CallOver("completed")


@pytest.mark.parametrize(("code", "search_s", "asked"), [
    (grpc.StatusCode.UNAVAILABLE, 0.0, 1), (grpc.StatusCode.PERMISSION_DENIED, 10.0, 1),
    (grpc.StatusCode.UNAVAILABLE, 0.7, 2)])
async def test_a_listener_gives_up_when_that_is_of_no_use(code: grpc.StatusCode, search_s: float, asked: int) -> None:
    without = HasNot(code)
    async with serving(without) as target, moshimesh.connect(target) as mesh:
        with pytest.raises(moshimesh.MeshError) as caught:
            await anext(mesh.listen(GRANT, search_s=search_s))
    assert (caught.value.code, caught.value.reason) == (code, "A_REASON")
    assert len(without.listened) >= asked


async def test_listen_prints_the_text_and_writes_both_voices_beside_each_other(tmp_path: Path) -> None:
    gateway, path = Tells(), tmp_path / "call.wav"
    async with serving(gateway) as target:
        code, out, err = await _moshimesh("listen", "--target", target, "--out", str(path),
                                                 MOSHIMESH_GRANT=GRANT)
    assert (code, out.strip()) == (0, "7 8 9")
    assert "[listening to a call]" in err and "[the call is over (completed)]" in err
    assert gateway.listened[0].grant == GRANT and not gateway.listened[0].without_audio
    with wave.open(str(path)) as wav:
        assert (wav.getnchannels(), wav.getframerate()) == (2, RATE)
        both = np.frombuffer(wav.readframes(wav.getnframes()), "<i2").reshape(-1, SAMPLES_PER_FRAME, 2)
    assert both[:, 0].tolist() == [[7, -7], [8, -8], [9, -9], [11, 0]]
    assert (both == both[:, :1]).all()


async def test_events_prints_what_happens_and_asks_for_no_audio() -> None:
    gateway = Tells()
    async with serving(gateway) as target:
        code, out, _ = await _moshimesh("events", "--target", target, "--json", MOSHIMESH_GRANT=GRANT)
    assert code == 0 and gateway.listened[0].without_audio
    assert [json.loads(line) for line in out.splitlines()] == [
        {"event": "ConversationEvent", "kind": "interrupted", "sequence": 6, "at_s": 0.48},
        {"event": "Missed", "messages": 3}, {"event": "CallOver", "reason": "completed"}]


async def test_grant_prints_a_grant_and_needs_a_handle() -> None:
    async with serving(Tells()) as target:
        code, out, _ = await _moshimesh("grant", "--target", target, "--lives", "5", MOSHIMESH_HANDLE="handle")
        assert (code, out) == (0, f"{GRANT} of handle for 5000 ms\n")
        code, _, err = await _moshimesh("listen", "--target", target)
        assert code == 1 and "no grant came; set MOSHIMESH_GRANT" in err
