"""The recorder of one hop: the timings of its last frames, and the spans of those that are kept.

Whether a frame is worth a trace is only known when it has left the mesh, so a hop remembers each for a while. When the
gateway says so (see `Keep` in tunnel.proto), or at once for a frame whose caller has sampled it, the timings become
spans: the hop with its children transit, queue and compute, and the tick that served it, in a trace of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from moshimesh.audio.v1 import audio_pb2
from moshimesh.tunnel.v1 import tunnel_pb2
from opentelemetry.trace import SpanContext, SpanKind

from services.mesh.telemetry import Attributes, FinishedSpan, FrameTracer, child_of, new_trace, read_traceparent
from services.mesh.timings import Timing

# Frames that a hop remembers, per slot: 10 s of Moshi's, or more while some slots are free. The gateway decides when a
# frame has left the mesh, within a second even under overload; but some are only asked for when their call has an
# event, and a frame may wait for a lost replica for most of a restart. 500 B each: 4 MB for 64 slots.
FRAMES_PER_SLOT = 125
# Ticks whose span has been sent, so that all of its frames link to the same one: more than run in FRAMES_PER_SLOT.
TICKS = 1024

HOP_NAMES = {audio_pb2.HOP_GATEWAY_INGEST: "gateway.ingest", audio_pb2.HOP_CODEC_ENCODE: "codec.encode",
             audio_pb2.HOP_LM_STEP: "lm.step", audio_pb2.HOP_CODEC_DECODE: "codec.decode",
             audio_pb2.HOP_GATEWAY_EMIT: "gateway.emit"}
TRACEPARENT_CHARACTERS = 55
_SAMPLED = frozenset("13579bdf")  # last digit of a traceparent whose lowest flag, "sampled", is set


class HopRecorder:
    """Remembers one hop's frames."""

    def __init__(self, tracer: FrameTracer, hop: audio_pb2.Hop, slots: int, model_id: str) -> None:
        self._tracer, self._enabled, self._name = tracer, tracer.enabled, HOP_NAMES[hop]
        self._slots, self._model_id = slots, model_id
        self._frames: OrderedDict[str, tuple[Timing, int, str]] = OrderedDict()
        self._most_frames = slots * FRAMES_PER_SLOT
        self._ticks: OrderedDict[int, SpanContext] = OrderedDict()

    def record(self, context: audio_pb2.FrameContext, timing: Timing, row: int, session: str) -> None:
        """Remember a frame that has been answered."""
        if not self._enabled:
            return
        traceparent = context.traceparent
        if len(traceparent) != TRACEPARENT_CHARACTERS:
            return
        if traceparent[-1] in _SAMPLED:
            self._send(tunnel_pb2.Keep(traceparent=traceparent, sequence=context.sequence), timing, row, session)
            return
        self._frames[traceparent] = timing, row, session
        if len(self._frames) > self._most_frames:
            self._frames.popitem(last=False)

    def keep(self, keep: tunnel_pb2.Keep) -> None:
        """Send the spans of a frame, if it is still remembered."""
        found = self._frames.pop(keep.traceparent, None)
        if found is not None:
            self._send(keep, *found)

    def _send(self, keep: tunnel_pb2.Keep, timing: Timing, row: int, session: str) -> None:
        frame = read_traceparent(keep.traceparent)
        if frame is None:
            return
        offset = keep.clock_offset_nanos
        batch = {"moshimesh.tick": timing.tick, "moshimesh.batch_size": timing.batch_size,
                 "moshimesh.batch_fill": timing.batch_size / self._slots, "moshimesh.model_id": self._model_id,
                 **clock_attributes(offset, keep.clock_uncertain)}
        send_hop(self._tracer, self._name, frame, timing, {
            "moshimesh.session": session, "moshimesh.sequence": keep.sequence, "moshimesh.slot": row, **batch},
            began=keep.began_unix_nanos, offset=offset, links=(self._tick(timing, offset, batch),),
            kind=SpanKind.SERVER)

    def _tick(self, timing: Timing, offset: int, attributes: Attributes) -> SpanContext:
        """The span of a tick, sent with the first of its frames that is kept."""
        span = self._ticks.get(timing.tick)
        if span is None:
            span = self._ticks[timing.tick] = new_trace()
            if len(self._ticks) > TICKS:
                self._ticks.popitem(last=False)
            self._tracer.send(FinishedSpan(
                f"{self._name}.tick", span, None, timing.started - offset, timing.finished - offset,
                {**attributes, "moshimesh.rows": tuple(timing.rows)}))
        return span


def send_hop(tracer: FrameTracer, name: str, frame: SpanContext, timing: Timing, attributes: Attributes, *,
             began: int = 0, offset: int = 0, links: Sequence[SpanContext] = (), kind: SpanKind = SpanKind.INTERNAL
             ) -> None:
    """Send a hop's span, below the frame's, and its parts.

    `began` is when the frame left the hop before; from then until it was received it was on its way. Unset: nobody
    knows of a way. `offset` is how far the clock of `timing` is ahead of the one of `began`.
    """
    received, started, finished = timing.received - offset, timing.started - offset, timing.finished - offset
    hop = child_of(frame)
    tracer.send(FinishedSpan(name, hop, frame, began or received, finished, attributes, links=links, kind=kind))
    if began:
        tracer.send(FinishedSpan(f"{name}.transit", child_of(hop), hop, began, received, {}))
    tracer.send(FinishedSpan(f"{name}.queue", child_of(hop), hop, received, started, {}))
    tracer.send(FinishedSpan(f"{name}.compute", child_of(hop), hop, started, finished, {}))


def clock_attributes(offset: int, uncertain: bool) -> dict[str, float | bool]:
    """What a span says about the correction of its times."""
    said: dict[str, float | bool] = {"moshimesh.clock_offset_ms": offset / 1e6} if offset else {}
    if uncertain:
        said["moshimesh.clock_uncertain"] = True
    return said
