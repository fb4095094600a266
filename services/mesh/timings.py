"""Timings of a frame, as they travel in its context."""

from __future__ import annotations

from moshimesh.audio.v1 import audio_pb2

from services.mesh.batching import Timing


def answer_context(context: audio_pb2.FrameContext, hop: audio_pb2.Hop, timing: Timing) -> audio_pb2.FrameContext:
    """The context of an answer: the frame's own number and trace, with this hop's timing behind the earlier ones."""
    answer = audio_pb2.FrameContext()
    answer.CopyFrom(context)
    answer.hops.add(hop=hop, received_unix_nanos=timing.received, dequeued_unix_nanos=timing.dequeued,
                    started_unix_nanos=timing.started, finished_unix_nanos=timing.finished,
                    batch_size=timing.batch_size, tick=timing.tick)
    return answer
