"""Controls reach the mesh with the audio that they belong to, also after a cut."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import moshimesh
from moshimesh.gateway.v1 import conversation_pb2 as pb

from tests.client.gateway import Gateway, ready, serving, speech, summary

FRAME = bytes(2 * 1920)


class Directed(Gateway):
    """Notes what comes in order, in its first call until the fourth frame."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self._cut = cut
        self.order: list[list[str]] = []

    async def hold(self, requests: AsyncIterator[pb.ConverseRequest], context: grpc.aio.ServicerContext
                   ) -> AsyncIterator[pb.ConverseResponse]:
        order: list[str] = []
        self.order.append(order)
        yield ready(resume_handle="handle", resume_grace_ms=5000, priming_frames=1,
                    next_sequence=2 if self.calls > 1 else 0)
        frames = 0
        async for request in requests:
            kind = request.WhichOneof("request")
            order.append(request.control.WhichOneof("control") if kind == "control" else "audio")
            frames += kind == "audio"
            if self._cut and self.calls == 1:
                if frames <= 2 and kind == "audio":
                    yield speech(frames - 1)
                if frames == 4:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        if self.calls == 2:
            for sequence in range(2, 6):
                yield speech(sequence)
        yield summary(frames_in=frames)


async def _talk(gateway: Directed) -> list[moshimesh.client.Event]:
    director = moshimesh.Director()

    async def pcm() -> AsyncIterator[bytes]:
        for number in range(6):
            if number == 1:
                director.set_sampling(text_temperature=0.0)
            if number == 3:
                director.interrupt(0.5)
            yield FRAME
            if number == 4:
                director.say("hello")
                director.played_out(3)

    async with serving(gateway) as target, moshimesh.connect(target) as mesh:
        return [event async for event in mesh.converse(pcm(), director=director, voice="lena", text_prompt="Be kind.")]


async def test_a_control_goes_out_before_the_next_piece_of_audio() -> None:
    gateway = Directed(cut=False)
    await _talk(gateway)
    assert gateway.order == [["audio", "sampling", "audio", "audio", "interrupt", "audio", "audio", "say",
                              "played_out", "audio"]]
    assert (gateway.configs[0].voice, gateway.configs[0].text_prompt) == ("lena", "Be kind.")


async def test_after_a_cut_only_what_the_mesh_has_not_answered_is_sent_again() -> None:
    gateway = Directed(cut=True)
    events = await _talk(gateway)
    assert [event.sequence for event in events if isinstance(event, moshimesh.Speech)] == list(range(6))
    first, second = gateway.order
    assert first == ["audio", "sampling", "audio", "audio", "interrupt", "audio"]
    # The mesh hears frame 1 again, for its codec, with whose answer the sampling had come into force.
    assert second[0] == "audio" and "sampling" not in second
    assert [kind for kind in second if kind != "audio"] == ["interrupt", "say", "played_out"]


class Tells(Gateway):
    """Says what happened."""

    async def hold(self, requests: AsyncIterator[pb.ConverseRequest], context: grpc.aio.ServicerContext
                   ) -> AsyncIterator[pb.ConverseResponse]:
        yield ready()
        yield pb.ConverseResponse(event=pb.ConversationEvent(
            kind=pb.EVENT_KIND_USER_SPEECH_STARTED, sequence=12, at_ms=960))
        async for _ in requests:
            pass
        yield summary(frames_in=1)


async def test_events_of_the_conversation_reach_the_caller() -> None:
    async with serving(Tells()) as target, moshimesh.connect(target) as mesh:
        events = [event async for event in mesh.converse(FRAME)]
    assert moshimesh.ConversationEvent("user_speech_started", 12, 0.96) in events
