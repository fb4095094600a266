"""One call's traces: a span for the session, and a trace of its own for each frame that is sampled."""

from __future__ import annotations

from moshimesh.audio.v1 import audio_pb2
from opentelemetry.trace import Span

from services.mesh.batching import Timing
from services.mesh.clock import now_unix_nanos
from services.mesh.telemetry import Attributes, FrameTracer, traceparent_of

_HOP_NAMES = {audio_pb2.HOP_GATEWAY_INGEST: "gateway.ingest", audio_pb2.HOP_GATEWAY_EMIT: "gateway.emit"}


class CallTrace:
    """The gateway's spans of one call."""

    def __init__(self, tracer: FrameTracer, session_id: str, traceparent: str, one_in: int) -> None:
        self._tracer = tracer
        self._one_in = one_in
        self._session_id = session_id
        self._session = tracer.start("session", now_unix_nanos(), {"moshimesh.session": session_id},
                                     traceparent=traceparent)
        self._frames: dict[int, Span] = {}  # at most the frames in flight

    def begin(self, sequence: int, received: int) -> str:
        """Start a frame's trace; its traceparent, or nothing when it is not sampled."""
        if not self._tracer.enabled or sequence % self._one_in:
            return ""
        attributes: Attributes = {"moshimesh.session": self._session_id, "moshimesh.sequence": sequence}
        span = self._tracer.start("frame", received, attributes, link=self._session)
        assert span is not None
        self._frames[sequence] = span
        return traceparent_of(span)

    def end(self, context: audio_pb2.FrameContext) -> None:
        """End a frame's trace and add the gateway's own hops to it."""
        span = self._frames.pop(context.sequence, None)
        if span is None:
            return
        for hop in context.hops:
            if hop.hop in _HOP_NAMES:
                timing = Timing(hop.received_unix_nanos, hop.dequeued_unix_nanos, hop.started_unix_nanos,
                                hop.finished_unix_nanos, hop.batch_size, hop.tick)
                self._tracer.hop(_HOP_NAMES[hop.hop], context, timing)
        span.end(now_unix_nanos())

    def close(self) -> None:
        """End the session's span, and those of frames that never came back."""
        for span in (*self._frames.values(), self._session):
            if span is not None:
                span.end(now_unix_nanos())
