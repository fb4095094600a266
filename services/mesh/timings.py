"""Timings of a frame, as they travel in its context."""

from __future__ import annotations

from moshimesh.audio.v1 import audio_pb2

from services.mesh.batching import Timing
from services.mesh.clock import now_unix_nanos


def answer_context(context: audio_pb2.FrameContext, hop: audio_pb2.Hop, timing: Timing) -> audio_pb2.FrameContext:
    """The context of an answer: the frame's own number and trace, with this hop's timing behind the earlier ones."""
    answer = audio_pb2.FrameContext()
    answer.CopyFrom(context)
    answer.hops.add(hop=hop, received_unix_nanos=timing.received, dequeued_unix_nanos=timing.dequeued,
                    started_unix_nanos=timing.started, finished_unix_nanos=timing.finished,
                    batch_size=timing.batch_size, tick=timing.tick)
    return answer


def stamp_return(context: audio_pb2.FrameContext, sent: int) -> None:
    """Note on an answer's last hop when the frame was sent there, and that it is back now."""
    if context.hops:  # the contract lets a hop leave out its timing
        hop = context.hops[-1]
        hop.sent_unix_nanos, hop.returned_unix_nanos = sent, now_unix_nanos()
