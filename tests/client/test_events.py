"""What a conversation tells its caller."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import moshimesh
import pytest
from moshimesh.gateway.v1 import conversation_pb2 as pb

from tests.client.gateway import Gateway, ready, serving, speech, summary


async def test_a_frame_of_speech_prints_in_a_line() -> None:
    frame = moshimesh.Speech(3, b"\x01" * 3840, "Hi", 17, range(8), 0, 0, [])
    assert repr(frame) == "Speech(sequence=3, text='Hi', text_token=17, pcm=<3840 bytes>, codes=<8>, frames_skipped=0)"


class CutInTheFlush(Gateway):
    """Ends its first call after the caller's 5 frames and the first of 2 frames of silence are answered."""

    async def hold(self, requests: AsyncIterator[pb.ConverseRequest], context: grpc.aio.ServicerContext
                   ) -> AsyncIterator[pb.ConverseResponse]:
        next_sequence = 6 if self.calls == 2 else 0
        yield ready(resume_handle="handle", resume_grace_ms=5000, delay_frames=1, next_sequence=next_sequence,
                    priming_frames=2)
        async for _ in requests:
            pass
        if self.calls == 1:
            for sequence in range(6):
                yield speech(sequence)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        yield speech(6)
        yield summary(frames_in=0)


async def test_silence_for_the_delay_line_is_not_counted_as_heard_after_a_resume() -> None:
    gateway = CutInTheFlush()
    async with serving(gateway) as target, moshimesh.connect(target) as mesh:
        events = [event async for event in mesh.converse(bytes(5 * 3840), pacing="offline")]
    assert gateway.calls == 2
    assert gateway.configs[1].answered_sequence == 5
    assert events[-1] == moshimesh.Summary(frames_in=5, frames_out=7, frames_skipped=0)


class SaysWhy(Gateway):
    """Ends each call with a reason in-band, and with the status that grpc.aio shows to a caller who is writing."""

    async def hold(self, requests: AsyncIterator[pb.ConverseRequest], context: grpc.aio.ServicerContext
                   ) -> AsyncIterator[pb.ConverseResponse]:
        yield ready()
        yield pb.ConverseResponse(ended=pb.CallEnded(code=8, reason="NO_FREE_SLOT", message="full", retry_after_ms=1500,
                                                     metadata={"limit": "3"}))
        await context.abort(grpc.StatusCode.INTERNAL, "Internal error from Core")


async def test_the_reason_that_is_said_in_band_is_the_one_that_counts() -> None:
    async with serving(SaysWhy()) as target, moshimesh.connect(target) as mesh:
        with pytest.raises(moshimesh.MeshError) as caught:
            async for _ in mesh.converse(bytes(3840)):
                pass
    error = caught.value
    assert (error.code, error.reason, error.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_FREE_SLOT", "full")
    assert (error.retry_after_s, error.metadata) == (1.5, {"limit": "3"})
