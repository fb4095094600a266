"""When a frame was where: as a service measures it, and as it travels in the frame's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from moshimesh.audio.v1 import audio_pb2

from services.mesh.errors import InvalidRequest

MOST_HOPS = 16  # before this one; a frame of a mesh has passed three at the most
MOST_TRACEPARENT_CHARACTERS = 128  # 55 in version 00 of https://www.w3.org/TR/trace-context/; later ones may add some


@dataclass(frozen=True, slots=True)
class Timing:
    """When a frame was where, and the batch that served it: its number and its rows."""

    received_unix_nanos: int
    dequeued_unix_nanos: int
    started_unix_nanos: int
    finished_unix_nanos: int
    tick: int
    rows: Sequence[int]

    @property
    def batch_size(self) -> int:
        """Frames in the batch."""
        return len(self.rows)


class Work(NamedTuple):
    """What the engine did for a while: step number `tick` for some rows, or (tick 0) one chunk of
    the opening of a session's row.
    """

    started_unix_nanos: int
    finished_unix_nanos: int
    tick: int
    rows: Sequence[int]
    session: str = ""


def check_context(context: audio_pb2.FrameContext, field: str = "frame.context") -> audio_pb2.FrameContext:
    """The context of a frame that came in. It is copied into the answer, so it must be small. Raises InvalidRequest."""
    if len(context.hops) > MOST_HOPS:
        raise InvalidRequest("BAD_CONTEXT", f"a frame may have passed {MOST_HOPS} hops, got {len(context.hops)}",
                             field=f"{field}.hops", accepted=f"0..{MOST_HOPS}")
    if len(context.traceparent) > MOST_TRACEPARENT_CHARACTERS:
        raise InvalidRequest("BAD_CONTEXT", f"a traceparent may have {MOST_TRACEPARENT_CHARACTERS} "
                             f"characters, got {len(context.traceparent)}", field=f"{field}.traceparent",
                             accepted=f"0..{MOST_TRACEPARENT_CHARACTERS}")
    return context


def answer_context(context: audio_pb2.FrameContext, hop: audio_pb2.Hop, timing: Timing) -> audio_pb2.FrameContext:
    """The context of an answer: the frame's own number and trace, with this hop's timing after the earlier ones."""
    answer = audio_pb2.FrameContext()
    answer.CopyFrom(context)
    answer.hops.add(hop=hop, received_unix_nanos=timing.received_unix_nanos,
                    dequeued_unix_nanos=timing.dequeued_unix_nanos, started_unix_nanos=timing.started_unix_nanos,
                    finished_unix_nanos=timing.finished_unix_nanos, batch_size=timing.batch_size, tick=timing.tick)
    return answer
