"""Watches the gateway's calls: each call's observer feeds its trace and its meter."""

from __future__ import annotations

from collections.abc import Callable

from moshimesh.audio.v1 import audio_pb2

from services.gateway.calls.callers import Caller, Opening, Resumed
from services.gateway.calls.ending import CANCELLED, COMPLETED
from services.gateway.calls.overload import Overload, Punctuality
from services.gateway.path.observer import Change, Observer
from services.gateway.watching.metering import CallMeter, GatewayMetrics
from services.gateway.watching.recent import RecentFrames
from services.gateway.watching.tracing import CallTrace
from services.mesh.telemetry import FrameTracer


def watcher(tracer: FrameTracer, metrics: GatewayMetrics, recent: RecentFrames, overload: Overload, trace_one_in: int
            ) -> Callable[[str, Caller, Opening], Observer]:
    """Gives each call its observer."""

    def watch(call_id: str, caller: Caller, opening: Opening) -> Observer:
        trace = CallTrace(tracer, call_id, opening.traceparent, trace_one_in, caller.key_id,
                          lambda: overload.spares_traces)
        return CallWatch(trace, metrics.call(opening.live, isinstance(opening.origin, Resumed)), recent,
                         overload if opening.live else None)

    return watch


class CallWatch:
    """One call's Observer."""

    def __init__(self, trace: CallTrace, meter: CallMeter, recent: RecentFrames, overload: Overload | None) -> None:
        """`overload` hears of a live call's frames; other calls have no deadline."""
        self._trace, self._meter, self._recent, self._overload = trace, meter, recent, overload
        self._deadline_nanos: int | None = None
        self._punctuality: Punctuality | None = None
        self.entered = trace.begin
        self.heard = meter.heard
        self.skipped = meter.skipped
        self.resumed = trace.resumed
        self.served_by = trace.served_by
        self.happened = meter.happened

    def opened(self, session_id: str, model_id: str, frame_nanos: int) -> None:
        """See Observer."""
        if self._overload is not None:
            self._deadline_nanos, self._punctuality = frame_nanos, Punctuality(self._overload, frame_nanos)
        self._trace.opened(session_id, model_id, self._deadline_nanos)
        self._meter.opened(frame_nanos)

    def moved(self, service: str, change: Change) -> None:
        """See Observer."""
        self._trace.changed(service, change)
        self._meter.moved(service, change)

    def left(self, context: audio_pb2.FrameContext) -> None:
        """See Observer."""
        kept = self._trace.end(context)
        if context.hops[-1].hop == audio_pb2.HOP_GATEWAY_EMIT:
            self._meter.frame(context, kept)
            self._recent.add(context, self._deadline_nanos)
            if self._punctuality is not None:
                self._punctuality.answered(context)

    def ended(self, reason: str) -> None:
        """See Observer."""
        self._meter.ended(reason)
        self._trace.ended(reason, is_error=reason not in (COMPLETED, CANCELLED))
        self._trace.close()
