"""Watches the gateway's calls: each call's observer feeds its trace and its meter."""

from __future__ import annotations

from collections.abc import Callable

from moshimesh.audio.v1 import audio_pb2

from services.gateway.calls.callers import Caller, Opening, Resumed
from services.gateway.calls.ending import CANCELLED, COMPLETED
from services.gateway.path.observer import Change, Observer
from services.gateway.watching.metering import CallMeter, GatewayMetrics
from services.gateway.watching.recent import RecentFrames
from services.gateway.watching.tracing import CallTrace
from services.mesh.telemetry import FrameTracer


def watcher(tracer: FrameTracer, metrics: GatewayMetrics, recent: RecentFrames, trace_one_in: int
            ) -> Callable[[str, Caller, Opening], Observer]:
    """Gives each call its observer."""

    def watch(call_id: str, caller: Caller, opening: Opening) -> Observer:
        return CallWatch(CallTrace(tracer, call_id, opening.traceparent, trace_one_in, caller.key_id),
                         metrics.call(opening.live, isinstance(opening.origin, Resumed)), recent, opening.live)

    return watch


class CallWatch:
    """One call's Observer."""

    def __init__(self, trace: CallTrace, meter: CallMeter, recent: RecentFrames, live: bool) -> None:
        self._trace, self._meter, self._recent, self._live = trace, meter, recent, live
        self._deadline_nanos: int | None = None
        self.entered = trace.begin
        self.heard = meter.heard
        self.skipped = meter.skipped
        self.resumed = trace.resumed
        self.served_by = trace.served_by
        self.happened = meter.happened

    def opened(self, session_id: str, model_id: str, frame_nanos: int) -> None:
        """See Observer."""
        self._deadline_nanos = frame_nanos if self._live else None
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

    def ended(self, reason: str) -> None:
        """See Observer."""
        self._meter.ended(reason)
        self._trace.ended(reason, is_error=reason not in (COMPLETED, CANCELLED))
        self._trace.close()
