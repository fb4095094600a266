"""The recorder of one hop: the timings of its last frames, and the spans of those that are kept.

Whether a frame is worth a trace is only known when it has left the mesh, so a hop remembers each for a while. When the
gateway says so (see `Keep` in tunnel.proto), or at once for a frame whose caller has sampled it, the timings become
spans: the hop with its children transit, queue and compute; and, in traces of their own, the tick that served it and
whatever else the engine did while it waited.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from moshimesh.audio.v1 import audio_pb2
from moshimesh.tunnel.v1 import tunnel_pb2
from opentelemetry.trace import SpanContext, SpanKind

from services.mesh.batching import RECENT_WORK
from services.mesh.telemetry import Attributes, FinishedSpan, FrameTracer, child_of, new_trace, read_traceparent
from services.mesh.timings import Timing, Work

# Frames that a hop remembers, per slot: 10 s of Moshi's, or more while some slots are free. The gateway decides when a
# frame has left the mesh, within a second even under overload; but some are only asked for when their call has an
# event, and a frame may wait for a lost replica for most of a restart. 500 B each: 4 MB for 64 slots.
FRAMES_PER_SLOT = 125
# What else the engine did while a frame waited is linked if it took this much of the wait, the longest first. A wait
# has one or two causes, a chunk of a history and the step after it; a frame that waited for seconds has many alike.
WORTH_NANOS = 1_000_000
MOST_CAUSES = 4
# Jaeger draws its critical path through spans that end before the next one starts, in whole microseconds: of two that
# touch it skips the earlier one. So a hop and a part end this much early.
GAP_NANOS = 1_000
SHORTEST_NANOS = 1_000  # of what is left; shorter ones are not sent, since Jaeger warns of spans without a length

HOP_NAMES = {audio_pb2.HOP_GATEWAY_INGEST: "gateway.ingest", audio_pb2.HOP_CODEC_ENCODE: "codec.encode",
             audio_pb2.HOP_LM_STEP: "lm.step", audio_pb2.HOP_CODEC_DECODE: "codec.decode",
             audio_pb2.HOP_GATEWAY_EMIT: "gateway.emit"}
TRACEPARENT_CHARACTERS = 55
_NOTHING: Attributes = {}
_SAMPLED = frozenset("13579bdf")  # last digit of a traceparent whose lowest flag, "sampled", is set


class HopRecorder:
    """Remembers one hop's frames."""

    def __init__(self, tracer: FrameTracer, hop: audio_pb2.Hop, slots: int, model_id: str, recent: deque[Work]) -> None:
        """`recent` is what the hop's engine did lately, oldest first (`Batcher.recent`)."""
        self._tracer, self._enabled, self._name = tracer, tracer.enabled, HOP_NAMES[hop]
        self._slots, self._model_id, self._recent = slots, model_id, recent
        self._frames: OrderedDict[str, tuple[Timing, int, str]] = OrderedDict()
        self._most_frames = slots * FRAMES_PER_SLOT
        # Work whose span has been sent, by its start, so that all frames that it served or held up link to one span.
        self._sent: OrderedDict[int, SpanContext] = OrderedDict()

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
        offset_nanos = keep.clock_offset_nanos
        clock = clock_attributes(offset_nanos, keep.clock_uncertain)
        tick = Work(timing.started_unix_nanos, timing.finished_unix_nanos, timing.tick, timing.rows)
        times = HopTimes.of(timing, keep.began_unix_nanos, offset_nanos)
        send_hop(self._tracer, self._name, frame, times, {
            "moshimesh.session": session, "moshimesh.sequence": keep.sequence, "moshimesh.slot": row,
            **self._batch(tick), **clock},
            links=tuple(self._span_of(work, offset_nanos, clock) for work in (tick, *self._meanwhile(timing))),
            kind=SpanKind.SERVER)

    def _meanwhile(self, timing: Timing) -> list[Work]:
        """What the engine did while a frame waited for it, besides the frame's own step: the longest first."""
        found = []
        for work in reversed(self._recent):
            if work.finished_unix_nanos <= timing.received_unix_nanos:
                break
            nanos = (min(work.finished_unix_nanos, timing.started_unix_nanos)
                     - max(work.started_unix_nanos, timing.received_unix_nanos))
            if nanos >= WORTH_NANOS:
                found.append((nanos, work))
        found.sort(key=lambda one: one[0], reverse=True)
        return [work for _, work in found[:MOST_CAUSES]]

    def _span_of(self, work: Work, offset_nanos: int, clock: Attributes) -> SpanContext:
        """The span of a step or chunk, sent with the first kept frame that it served or held up."""
        span = self._sent.get(work.started_unix_nanos)
        if span is None:
            span = self._sent[work.started_unix_nanos] = new_trace()
            if len(self._sent) > RECENT_WORK:
                self._sent.popitem(last=False)
            kind = "tick" if work.tick else "rebuild"
            about: Attributes = self._batch(work) if work.tick else {
                "moshimesh.session": work.session, "moshimesh.model_id": self._model_id}
            self._tracer.send(FinishedSpan(
                f"{self._name}.{kind}", span, None, work.started_unix_nanos - offset_nanos,
                work.finished_unix_nanos - offset_nanos,
                {**about, "moshimesh.rows": tuple(work.rows), **clock}))
        return span

    def _batch(self, tick: Work) -> dict[str, str | int | float]:
        size = len(tick.rows)
        return {"moshimesh.tick": tick.tick, "moshimesh.batch_size": size, "moshimesh.batch_fill": size / self._slots,
                "moshimesh.model_id": self._model_id}


class HopTimes(NamedTuple):
    """When a frame was where at a hop, in Unix nanoseconds on the gateway's clock."""

    began: int  # it left the hop before; 0 where no way leads there
    received: int
    started: int
    finished: int

    @classmethod
    def of(cls, timing: Timing, began: int = 0, offset_nanos: int = 0) -> HopTimes:
        """`offset_nanos` is how far the clock of `timing` is ahead of the one of `began`."""
        return cls(began, timing.received_unix_nanos - offset_nanos, timing.started_unix_nanos - offset_nanos,
                   timing.finished_unix_nanos - offset_nanos)

    @property
    def start(self) -> int:
        """The hop's beginning: its frame's end at the hop before."""
        return self.began or self.received

    def parts(self) -> Iterator[tuple[str, int, int]]:
        """Each part with its start and end; together they are the hop."""
        if self.began:
            yield "transit", self.began, self.received
        yield "queue", self.received, self.started
        yield "compute", self.started, self.finished


def send_hop(tracer: FrameTracer, name: str, frame: SpanContext, times: HopTimes, attributes: Attributes, *,
             links: Sequence[SpanContext] = (), kind: SpanKind = SpanKind.INTERNAL) -> None:
    """Send a hop's span, below the frame's, and its parts, but for those that took no time."""
    hop = child_of(frame)
    _send_part(tracer, name, hop, frame, times.start, times.finished, attributes, links, kind)
    for part, start, end in times.parts():
        _send_part(tracer, f"{name}.{part}", child_of(hop), hop, start, end)


def _send_part(tracer: FrameTracer, name: str, span: SpanContext, parent: SpanContext, start: int, end: int,
               attributes: Attributes = _NOTHING, links: Sequence[SpanContext] = (),
               kind: SpanKind = SpanKind.INTERNAL) -> None:
    end -= GAP_NANOS
    if end - start >= SHORTEST_NANOS:
        tracer.send(FinishedSpan(name, span, parent, start, end, attributes, links, kind))


def clock_attributes(offset_nanos: int, uncertain: bool) -> dict[str, float | bool]:
    """What a span says about the correction of its times."""
    said: dict[str, float | bool] = {"moshimesh.clock_offset_ms": offset_nanos / 1e6} if offset_nanos else {}
    if uncertain:
        said["moshimesh.clock_uncertain"] = True
    return said
