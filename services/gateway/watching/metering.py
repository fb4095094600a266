"""The gateway's metrics: what every frame of every call took, and how replicas, sessions and Redis are.

All hops of a frame come together here, so that its values are recorded once, when it has been answered. Nothing is
counted by session: attributes are hops, services, replicas and reasons (docs/telemetry.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from moshimesh.audio.v1 import audio_pb2
from opentelemetry.trace import SpanContext

from services.gateway.path.observer import Change
from services.gateway.turns.events import EventKind
from services.gateway.watching.quality import Jitter, Playout, mos
from services.mesh.clock import now_unix_nanos
from services.mesh.metrics import FRAME_BOUNDS_S, PART_BOUNDS_S, Metrics, Series
from services.mesh.recorder import HOP_NAMES

ENGINES = (audio_pb2.HOP_CODEC_ENCODE, audio_pb2.HOP_LM_STEP, audio_pb2.HOP_CODEC_DECODE)
WINDOW_FRAMES = 64  # about 5 s of a call, as often as RTCP reports (RFC 3550, 6.2)
Record: TypeAlias = Callable[[float, SpanContext | None], None]

FACTOR_BOUNDS = (.25, .5, .75, .9, 1., 1.1, 1.25, 1.5, 2., 3., 5., 10., 20., 50., 100.)
JITTER_BOUNDS_S = (.0005, .001, .002, .005, .01, .02, .03, .04, .06, .08, .12, .16, .32)
MOS_BOUNDS = (1.5, 2., 2.5, 3., 3.3, 3.6, 3.8, 4., 4.1, 4.2, 4.3, 4.4)


class GatewayMetrics:
    """The instruments of a gateway."""

    def __init__(self, metrics: Metrics) -> None:
        self.enabled = metrics.enabled
        duration = metrics.histogram("moshimesh.frame.duration", "s", "From a frame's last sample to its answer.",
                                     FRAME_BOUNDS_S)
        self.durations = {live: duration.series(pacing=pacing) for live, pacing in _PACINGS.items()}
        hops = metrics.histogram("moshimesh.hop.duration", "s", "Where a frame's time went.", PART_BOUNDS_S)
        self.transits: dict[int, Record] = {hop: hops.series(hop=name, part="transit").record
                                            for hop, name in HOP_NAMES.items() if hop != audio_pb2.HOP_GATEWAY_INGEST}
        self.parts: dict[int, tuple[Record, Record]] = {
            hop: (hops.series(hop=name, part="queue").record, hops.series(hop=name, part="compute").record)
            for hop, name in HOP_NAMES.items()}
        self.factor = metrics.histogram("moshimesh.realtime.factor", "1", "Length of a frame by what its computations "
                                        "took; below 1 even one caller can't be served.", FACTOR_BOUNDS).series()
        self.jitter = metrics.histogram("moshimesh.jitter", "s", "Interarrival jitter (RFC 3550) of live callers' "
                                        "audio, every 5 s.", JITTER_BOUNDS_S).series()
        opinion = metrics.histogram("moshimesh.mos", "1", "Mean opinion score of live calls as the E-model (ITU-T "
                                    "G.107) estimates it.", MOS_BOUNDS)
        self.mos = {span: opinion.series(span=span) for span in ("window", "call")}
        self.frames = dict.fromkeys(_PACINGS, 0)
        self.misses = self.skipped = self.underruns = self.resumes = self.live = 0
        metrics.total("moshimesh.frames", "{frame}", "Frames that were answered.",
                      lambda: [({"pacing": pacing}, self.frames[live]) for live, pacing in _PACINGS.items()])
        metrics.total("moshimesh.frame.deadline.misses", "{frame}", "Live frames that took longer than they last.",
                      lambda: [({}, self.misses)])
        metrics.total("moshimesh.frames.skipped", "{frame}", "Frames of callers that the model did not hear.",
                      lambda: [({}, self.skipped)])
        metrics.total("moshimesh.underruns", "{underrun}", "Times that a caller with 160 ms of playout buffer heard a "
                      "hole.", lambda: [({}, self.underruns)])
        metrics.total("moshimesh.resumes", "{call}", "Calls that were resumed.", lambda: [({}, self.resumes)])
        metrics.amount("moshimesh.calls", "{call}", "Calls that hold slots now.", lambda: [({}, self.live)])
        self.ended = metrics.counter("moshimesh.calls.ended", "{call}", "Calls that ended, and how.")
        self.ended.add(0, reason="completed")
        self.events = metrics.counter("moshimesh.events", "{event}", "Events of conversations that callers were told.")
        for event in EventKind:
            self.events.add(0, kind=event.value)
        self.failovers = metrics.counter("moshimesh.failovers", "{failover}", "Rows of sessions that had to move.")
        for service in ("codec", "lm"):
            for kind in ("lost", "drained"):
                self.failovers.add(0, service=service, kind=kind)

    def call(self, live: bool, resumed: bool) -> CallMeter:
        """Measure one more call."""
        return CallMeter(self, live, resumed)


class CallMeter:
    """The measurements of one call."""

    def __init__(self, metrics: GatewayMetrics, live: bool, resumed: bool) -> None:
        self._metrics, self._live, self._resumed = metrics, live, resumed
        self._jitter = Jitter()
        self._skipped = 0  # frames, since the last answer
        self._frame_s = 0.0  # until the call has its slots

    def opened(self, frame_nanos: int) -> None:
        """The call has its slots."""
        self._frame_s = frame_nanos / 1e9
        self._playout = Playout(self._frame_s)
        self._call, self._window = _Span(), _Span()
        self._metrics.live += 1
        self._metrics.resumes += self._resumed

    def heard(self, seconds: float) -> None:
        """A piece of the caller's audio has come."""
        if self._live and self._metrics.enabled:
            self._jitter.arrived(now_unix_nanos() / 1e9, seconds)

    def skipped(self, frames: int) -> None:
        """The model will not hear these."""
        self._metrics.skipped += frames
        self._skipped += frames

    def ended(self, reason: str) -> None:
        """How the call ended, whether it had slots or not."""
        metrics = self._metrics
        metrics.ended.add(reason=reason)
        if self._frame_s:
            metrics.live -= 1
            if self._live and self._call.frames:
                self._window.close(metrics.mos["window"], self._jitter.seconds)
                self._call.close(metrics.mos["call"], self._jitter.seconds)

    def happened(self, kind: EventKind) -> None:
        """The caller is told of an event."""
        self._metrics.events.add(kind=kind.value)

    def moved(self, service: str, change: Change) -> None:
        """A row of the call has moved: its replica was lost, or left in good time."""
        self._metrics.failovers.add(service=service, kind="lost" if change is Change.FAILED_OVER else change.value)

    def frame(self, context: audio_pb2.FrameContext, kept: SpanContext | None = None) -> None:
        """One frame was answered. `kept` is its span, if it is sent."""
        metrics = self._metrics
        if not metrics.enabled:
            return
        transits, parts = metrics.transits, metrics.parts
        first = left = computed = 0  # here and below: moments in Unix nanoseconds, and nanoseconds
        for hop in context.hops:
            place: int = hop.hop
            received, started, finished = hop.received_unix_nanos, hop.started_unix_nanos, hop.finished_unix_nanos
            if first:
                # Transit is the time since the frame left the hop before, by the gateway's clock, minus the time for
                # which this hop had the frame, by the hop's clock. Both are differences, so the clocks may disagree.
                back = hop.returned_unix_nanos
                transits[place]((back - left - (finished - received) if back else received - left) / 1e9, kept)
                left = back or finished
            else:
                first, left = received, finished
            queue, compute = parts[place]
            queue((started - received) / 1e9, kept)
            compute((finished - started) / 1e9, kept)
            if place in ENGINES:
                computed += finished - started
        seconds = (left - first) / 1e9
        metrics.durations[self._live].record(seconds, kept)
        metrics.frames[self._live] += 1
        if computed:
            metrics.factor.record(self._frame_s * 1e9 / computed, kept)
        if not self._live:
            return
        if seconds > self._frame_s:
            metrics.misses += 1
        underruns = self._playout.underruns
        self._playout.answered(left / 1e9)
        new = self._playout.underruns - underruns
        metrics.underruns += new
        lost, self._skipped = new + self._skipped, 0
        self._call.add(seconds, lost)
        self._window.add(seconds, lost)
        if self._window.frames >= WINDOW_FRAMES:
            metrics.jitter.record(self._jitter.seconds)
            self._window.close(metrics.mos["window"], self._jitter.seconds)
            self._window = _Span()


class _Span:
    """Some seconds of a call, or all of it."""

    def __init__(self) -> None:
        self.frames = 0
        self._seconds = 0.0
        self._lost = 0

    def add(self, seconds: float, lost: int) -> None:
        """A frame, and how many were not heard, or not in time, before it."""
        self.frames += 1
        self._seconds += seconds
        self._lost += lost

    def close(self, series: Series, jitter_s: float) -> None:
        """Record what it was like."""
        if self.frames:
            series.record(mos(self._seconds / self.frames, jitter_s, self._lost / (self.frames + self._lost)))


_PACINGS = {True: "live", False: "offline"}
