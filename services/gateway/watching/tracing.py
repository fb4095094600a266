"""One call's traces: which of its frames are kept, and the gateway's own spans of those.

Every frame carries the ids of a trace, but nothing is made of them until it has left the mesh. Then it is kept if it is
one in so many, if a live caller had to wait for it longer than a frame lasts, or if something happened to its session
just before or after. The gateway sends its own spans of a kept frame, and tells the services to send theirs. If a
service is lost, the gateway sends that service's spans, too: an answer brings the timings of all hops.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from moshimesh.audio.v1 import audio_pb2
from moshimesh.tunnel.v1 import tunnel_pb2
from opentelemetry.trace import SpanContext, SpanKind

from services.gateway.calls.overload import SPARED_ONE_IN
from services.gateway.path.observer import Change
from services.gateway.peers.replicas import Replica
from services.gateway.peers.tunnel import Stream
from services.mesh.clock import now_unix_nanos
from services.mesh.recorder import HOP_NAMES, HopTimes, clock_attributes, send_hop
from services.mesh.telemetry import (
    Attributes,
    FinishedSpan,
    FrameTracer,
    SpanEvent,
    child_of,
    new_trace,
    read_traceparent,
)
from services.mesh.timings import Timing

# Frames that are kept before and after an event of their session: half a second, what one would look at.
AROUND_FRAMES = 6
# Events that a session's span may carry. A call that skips or moves more often than this needs no more of them.
EVENTS = 128
# Replicas of a stage that are remembered: a frame can still be asked for after its session has moved on, and again.
SERVERS = 4

_RPC: Attributes = {"rpc.system": "grpc", "rpc.service": "moshimesh.gateway.v1.ConversationService",
                    "rpc.method": "Converse"}
_STRIDE = 0x9E3779B97F4A7C15  # odd, so that all frames of a call differ, in all bits that a sampler may look at
_MASK = (1 << 64) - 1
_NEVER = -1


class Server(NamedTuple):
    """The replica that answers a stage's frames from a number on."""

    first_sequence: int
    replica: Replica
    stream: Stream | None  # a replica that was restarted has a new one, and has forgotten the frames


class CallTrace:
    """Decides about one call's frames. Does nothing when traces go nowhere."""

    def __init__(self, tracer: FrameTracer, session_id: str, traceparent: str, one_in: int, key_id: str = "",
                 sparing: Callable[[], bool] = lambda: False) -> None:
        """`traceparent` is the caller's, to which the session's span belongs; `key_id` names its key. While it is
        `sparing`, of the frames that would be kept for what happened to them one in SPARED_ONE_IN is.
        """
        self._sparing = sparing
        self._tracer, self._enabled = tracer, tracer.enabled
        self._one_in, self._phase = one_in, random.randrange(one_in)  # not the first frame of every call
        self._session_id, self._model_id, self._key_id = session_id, "", key_id
        self._caller = read_traceparent(traceparent)
        self._session = child_of(self._caller) if self._caller else new_trace()
        self._began_unix_nanos = now_unix_nanos()
        self._events: deque[SpanEvent] = deque(maxlen=EVENTS)
        self._error = ""
        # What the frames' ids are made of: all digits differ from frame to frame. Jaeger shows the first seven of a
        # trace's id, and samplers look at the last ones.
        self._ids, self._low_ids, self._span_ids = (random.getrandbits(64) for _ in range(3))
        self._deadline_nanos: int | None = None
        self._begun = _NEVER  # the last frame that was sent into the mesh
        self._around = (0, _NEVER)  # the frames that an event asks for, first and last
        self._servers: dict[int, deque[Server]] = {}  # by hop, latest last
        # The last frames that have left; None for one that was kept already.
        self._recent: deque[audio_pb2.FrameContext | None] = deque(maxlen=AROUND_FRAMES)
        self._recent_wanted = False

    def opened(self, session_id: str, model_id: str, deadline_nanos: int | None) -> None:
        """The session's facts; frames of a call without a deadline are only sampled.

        Sends a first span of the session: the frames of a call link to it, and its own comes when the call ends.
        """
        self._session_id, self._model_id, self._deadline_nanos = session_id, model_id, deadline_nanos
        self._tracer.send(FinishedSpan("session.open", child_of(self._session), self._session, self._began_unix_nanos,
                                       now_unix_nanos(), self._session_attributes()))

    def begin(self, sequence: int) -> str:
        """The traceparent of a frame that enters the mesh."""
        if not self._enabled:
            return ""
        last, self._begun = self._begun, sequence
        if sequence > last + 1 and last != _NEVER:
            self.event("skipped", {"moshimesh.frames": sequence - last - 1})
        number = (self._ids + sequence * _STRIDE) & _MASK
        return f"00-{number:016x}{number ^ self._low_ids:016x}-{number ^ self._span_ids:016x}-00"

    def served_by(self, hop: audio_pb2.Hop, replica: Replica, sequence: int) -> None:
        """Another replica answers a hop's frames, from a number on."""
        servers = self._servers.setdefault(hop, deque(maxlen=SERVERS))
        servers.append(Server(sequence, replica, replica.tunnel.stream))

    def end(self, context: audio_pb2.FrameContext) -> SpanContext | None:
        """A frame has left the mesh; its span if it is kept."""
        if not self._enabled or not context.hops:
            return None
        self._keep_recent()
        sequence, slack_nanos = context.sequence, self._slack_nanos(context)
        if slack_nanos is not None and slack_nanos < 0:
            because = "deadline"
        elif self._deadline_nanos is not None and self._around[0] <= sequence <= self._around[1]:
            because = "event"
        elif (sequence + self._phase) % self._one_in == 0:
            because = "sampled"
        else:
            because = ""
        if not because or (because != "sampled" and self._sparing() and (sequence + self._phase) % SPARED_ONE_IN):
            self._recent.append(context)
            return None
        self._recent.append(None)
        return self._keep(context, because)

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Something has happened to the session: keep the frames before, those in the mesh, and the next ones."""
        self._note(name, attributes or {})
        if self._deadline_nanos is not None and not self._sparing():
            self._around = (0, self._begun + AROUND_FRAMES)
            self._recent_wanted = True

    def changed(self, service: str, change: Change) -> None:
        """The session's row at a service has moved."""
        self.event(change.value, {"moshimesh.service": service})

    def resumed(self, next_sequence: int) -> None:
        """The call goes on after a cut; the frames before `next_sequence` only bring the codec back to it."""
        self._note("resumed", {"moshimesh.sequence": next_sequence})
        self._around = (next_sequence, next_sequence + AROUND_FRAMES)

    def ended(self, reason: str, is_error: bool) -> None:
        """How the call ended."""
        self._note("ended", {"moshimesh.reason": reason})
        self._error = reason if is_error else ""

    def close(self) -> None:
        """Send the session's span."""
        self._keep_recent()
        self._tracer.send(FinishedSpan(
            "session", self._session, self._caller, self._began_unix_nanos, now_unix_nanos(),
            {**self._session_attributes(), **_RPC}, kind=SpanKind.SERVER, events=tuple(self._events),
            error=self._error))

    def _session_attributes(self) -> Attributes:
        return {"moshimesh.session": self._session_id, "moshimesh.model_id": self._model_id,
                "moshimesh.key_id": self._key_id}

    def _note(self, name: str, attributes: Attributes) -> None:
        self._events.append((name, now_unix_nanos(), attributes))

    def _keep_recent(self) -> None:
        """Keep the frames before an event. Not at once: which replica is lost is known when the next frame has left."""
        if self._recent_wanted:
            self._recent_wanted = False
            for recent in self._recent:
                if recent is not None:
                    self._keep(recent, "event")
            self._recent.clear()

    def _slack_nanos(self, context: audio_pb2.FrameContext) -> int | None:
        """How much earlier than needed a frame's answer was there; None for one without a deadline or an answer."""
        last = context.hops[-1]
        if self._deadline_nanos is None or last.hop != audio_pb2.HOP_GATEWAY_EMIT:
            return None
        return self._deadline_nanos - (last.finished_unix_nanos - context.capture_unix_nanos)

    def _keep(self, context: audio_pb2.FrameContext, because: str) -> SpanContext | None:
        """Send the gateway's spans of a frame, and have the services send theirs."""
        frame = read_traceparent(context.traceparent, is_remote=False)
        if frame is None:
            return None
        first, last = context.hops[0], context.hops[-1]
        attributes: dict[str, str | int | float | bool] = {
            "moshimesh.session": self._session_id, "moshimesh.sequence": context.sequence,
            "moshimesh.model_id": self._model_id, "moshimesh.kept_because": because}
        if (slack_nanos := self._slack_nanos(context)) is not None:
            attributes["moshimesh.deadline_slack_ms"] = slack_nanos / 1e6
        began_unix_nanos = longest_nanos = 0
        for hop in context.hops:
            server = self._server(hop.hop, context.sequence)
            if server is not None:
                times = self._keep_hop(context, frame, hop, server, began_unix_nanos)
            else:
                times = HopTimes.of(_timing(hop), began_unix_nanos)
                send_hop(self._tracer, HOP_NAMES[hop.hop], frame, times, {})
            began_unix_nanos = times.finished
            if times.finished - times.start > longest_nanos:
                longest_nanos = times.finished - times.start
                attributes["moshimesh.slowest_hop"] = HOP_NAMES[hop.hop]
                part_nanos, attributes["moshimesh.slowest_part"] = max(
                    (end - start, part) for part, start, end in times.parts())
                attributes["moshimesh.slowest_part_ms"] = part_nanos / 1e6
        end = last.returned_unix_nanos or last.finished_unix_nanos  # without an answer, it ends where it came back
        self._tracer.send(FinishedSpan("frame", frame, None, first.received_unix_nanos, end, attributes,
                                       links=(self._session,)))
        return frame

    def _server(self, hop: audio_pb2.Hop, sequence: int) -> Server | None:
        """The replica that answered a frame; None for the gateway's own hops."""
        for server in reversed(self._servers.get(hop, ())):
            if server.first_sequence <= sequence:
                return server
        return None

    def _keep_hop(self, context: audio_pb2.FrameContext, frame: SpanContext, hop: audio_pb2.HopTiming, server: Server,
                  began_unix_nanos: int) -> HopTimes:
        """Have a service send its spans of a frame, which left the hop before at `began_unix_nanos`.

        Returns when the frame was at this hop.

        The estimate of its clock must not contradict this very frame: it can't have been there before it was sent, nor
        after it had returned.
        """
        offset_nanos, uncertain = server.replica.clock.offset()
        offset_nanos = max(hop.finished_unix_nanos - hop.returned_unix_nanos,
                           min(hop.received_unix_nanos - hop.sent_unix_nanos, offset_nanos))
        times = HopTimes.of(_timing(hop), began_unix_nanos, offset_nanos)
        # If the service is lost, the gateway sends the hop itself, from the timings that have come with the frame.
        tell = functools.partial(send_hop, self._tracer, HOP_NAMES[hop.hop], frame, times, {
            "moshimesh.session": self._session_id, "moshimesh.sequence": context.sequence,
            "moshimesh.tick": hop.tick, "moshimesh.batch_size": hop.batch_size,
            "server.address": server.replica.address, **clock_attributes(offset_nanos, uncertain)},
            kind=SpanKind.CLIENT)
        if server.stream is None:
            tell()
        else:
            server.stream.keep(tunnel_pb2.Keep(
                traceparent=context.traceparent, sequence=context.sequence, hop=hop.hop,
                began_unix_nanos=began_unix_nanos, clock_offset_nanos=offset_nanos, clock_uncertain=uncertain), tell)
        return times


def _timing(hop: audio_pb2.HopTiming) -> Timing:
    return Timing(hop.received_unix_nanos, hop.dequeued_unix_nanos, hop.started_unix_nanos, hop.finished_unix_nanos,
                  hop.tick, ())
