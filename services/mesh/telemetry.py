"""Spans on their way out: made when they are over, sent in batches by a thread of their own.

A frame's spans are made for the few frames that are kept: with the ids that travelled in the frame and the times that
were measured anyway. docs/telemetry.md names every span and attribute. The SDK's own span objects would cost 60 us each
to be encoded, of the same interpreter that serves the calls; these are written to OTLP's messages directly, in a fifth
of that, and sent through OTLP's own generated stub.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from services import __version__
from services.mesh.otel_environment import milliseconds, otlp_endpoint, otlp_headers, otlp_timeout_ms
from services.mesh.otlp import open_channel, wire_attributes

log = logging.getLogger(__name__)

# Spans that may wait for the collector, 1 kB each: what a gateway makes in two seconds in which all frames of 50
# callers are late. Beyond that the oldest are dropped; a frame never waits.
WAITING_SPANS = 8192
BATCH_SPANS = 512  # of one export, 0.3 MB: collectors take 4 MB
BATCH_EVERY_MS = 1000.0  # OTEL_BSP_SCHEDULE_DELAY changes it
# When a collector takes longer, the batch is dropped; the spans that come meanwhile must find room.
EXPORT_MS = 5000.0
RETRY_S = 1.0
CLOSE_S = 3.0  # the last batches, when the process ends
WARN_EVERY_S = 60.0
# https://opentelemetry.io/docs/specs/otlp/#failures: the others say that the same batch would fail again
RETRYABLE = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED,
                       grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS})

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
Attributes: TypeAlias = Mapping[str, "str | bool | int | float | Sequence[int]"]
SpanEvent: TypeAlias = tuple[str, int, Attributes]
"""What happened, when (Unix nanoseconds), and more about it."""

_KINDS = {SpanKind.INTERNAL: trace_pb2.Span.SPAN_KIND_INTERNAL, SpanKind.SERVER: trace_pb2.Span.SPAN_KIND_SERVER,
          SpanKind.CLIENT: trace_pb2.Span.SPAN_KIND_CLIENT}
_SCOPE = InstrumentationScope(name="moshimesh", version=__version__)


@functools.cache
def service_resource(service: str) -> Resource:
    """Attributes of all that a process sends. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES add to them and win."""
    return Resource({"service.name": service, "service.version": __version__, "service.instance.id": str(uuid.uuid4()),
                     "process.pid": os.getpid()}).merge(OTELResourceDetector().detect())


class FinishedSpan(NamedTuple):
    """A span that is over; `start` and `end` in Unix nanoseconds, `error` what it ended with."""

    name: str
    context: SpanContext
    parent: SpanContext | None
    start: int
    end: int
    attributes: Attributes
    links: Sequence[SpanContext] = ()
    kind: SpanKind = SpanKind.INTERNAL
    events: Sequence[SpanEvent] = ()
    error: str = ""


class SpanSink(Protocol):
    """Where finished spans go."""

    def on_end(self, span: FinishedSpan) -> None:
        """Take a span; never wait."""

    def shutdown(self) -> None:
        """Send what is left."""


class SpanSender:
    """Sends spans to a collector over OTLP/gRPC, in batches, from its own thread."""

    def __init__(self, endpoint: str, service: str) -> None:
        self._endpoint = endpoint
        self._resource = resource_pb2.Resource(attributes=wire_attributes(service_resource(service).attributes))
        self._channel = open_channel(endpoint, "traces")
        self._export = TraceServiceStub(self._channel).Export
        self._headers = otlp_headers("traces")
        self._export_s = otlp_timeout_ms("traces", EXPORT_MS) / 1000
        self._every_s = milliseconds("OTEL_BSP_SCHEDULE_DELAY", BATCH_EVERY_MS) / 1000
        self._waiting: deque[FinishedSpan] = deque(maxlen=WAITING_SPANS)
        self._overrun = 0  # spans that found no room since the last batch
        self._lost, self._warn_at = 0, 0.0
        self._refused = False
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def on_end(self, span: FinishedSpan) -> None:
        """Take a span; the oldest one leaves when there is no room."""
        waiting = len(self._waiting)
        if waiting == WAITING_SPANS:
            self._overrun += 1
        self._waiting.append(span)
        if waiting >= BATCH_SPANS and not self._wake.is_set():
            self._wake.set()

    def shutdown(self) -> None:
        """Send what is left."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        self._channel.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(self._every_s)
            self._wake.clear()
            self._send_batch()
            while len(self._waiting) >= BATCH_SPANS and not self._closing.is_set():
                self._send_batch()
        while self._waiting:
            self._send_batch()

    def _send_batch(self) -> None:
        spans = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_SPANS))]
        lost, self._overrun = self._overrun, 0
        why = "more came than the collector took"
        wire = []
        for span in spans:
            try:
                wire.append(wire_span(span))
            except Exception as error:  # one caller's frame must not cost the others their traces
                lost, why = lost + 1, f"{span.name} can't be written ({error})"
        if wire and not self._refused:
            try:
                self._deliver(ExportTraceServiceRequest(resource_spans=[trace_pb2.ResourceSpans(
                    resource=self._resource, scope_spans=[trace_pb2.ScopeSpans(scope=_SCOPE, spans=wire)])]))
            except grpc.RpcError as error:
                lost, why = lost + len(wire), f"{error.code().name}: {error.details()}"
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    self._refused = True
                    log.warning("%s takes no traces, so none are sent", self._endpoint)
                    return
        if lost:
            self._warn(lost, why)

    def _deliver(self, request: ExportTraceServiceRequest) -> None:
        """Export; again while that may help and there is time. Raises RpcError."""
        deadline = time.monotonic() + self._export_s
        while True:
            try:
                self._export(request, timeout=max(deadline - time.monotonic(), 0.001), metadata=self._headers)
                return
            except grpc.RpcError as error:
                if (error.code() not in RETRYABLE or time.monotonic() + RETRY_S > deadline
                        or self._closing.wait(RETRY_S)):
                    raise

    def _warn(self, lost: int, why: str) -> None:
        """Say what was lost, at most once in WARN_EVERY_S."""
        self._lost += lost
        if time.monotonic() >= self._warn_at:
            log.warning("%d spans were lost on the way to %s: %s", self._lost, self._endpoint, why)
            self._lost, self._warn_at = 0, time.monotonic() + WARN_EVERY_S


class FrameTracer:
    """Takes finished spans and sends them in the background; does nothing without a sink."""

    def __init__(self, sink: SpanSink | None = None) -> None:
        self._sink = sink

    @classmethod
    def export_to(cls, endpoint: str, service: str) -> FrameTracer:
        """A tracer that sends to an OTLP/gRPC endpoint, by default to OpenTelemetry's variables' one, if there is any.

        A service starts without traces rather than not at all: what prevents them is a line in the log.
        """
        endpoint = otlp_endpoint(endpoint, "traces")
        if not endpoint:
            return cls()
        try:
            return cls(SpanSender(endpoint, service))
        except Exception as error:
            log.warning("traces can't be sent to %s, so none are: %s", endpoint, error)
            return cls()

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere."""
        return self._sink is not None

    def send(self, span: FinishedSpan) -> None:
        """Send a span."""
        if self._sink is not None:
            self._sink.on_end(span)

    def close(self) -> None:
        """Send what is left, for at most CLOSE_S: a collector that hangs must not hold up the end of the process."""
        if self._sink is not None:
            closing = threading.Thread(target=self._sink.shutdown, daemon=True)
            closing.start()
            closing.join(CLOSE_S)


def new_trace() -> SpanContext:
    """The context of a span that begins a trace."""
    return SpanContext(random.getrandbits(128) or 1, random.getrandbits(64) or 1, False, SAMPLED)


def child_of(parent: SpanContext) -> SpanContext:
    """The context of a span below another one."""
    return SpanContext(parent.trace_id, random.getrandbits(64) or 1, False, SAMPLED)


def read_traceparent(traceparent: str, is_remote: bool = True) -> SpanContext | None:
    """The span that a W3C traceparent names, to be sent whatever its flags say; None when it is empty or malformed."""
    try:
        _, trace_id, span_id, _ = traceparent.split("-")
        context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, SAMPLED)
    except ValueError:
        return None
    return context if context.is_valid else None


def wire_span(span: FinishedSpan) -> trace_pb2.Span:
    """A span as OTLP has it. Raises ValueError for times that OTLP can't express."""
    context, parent = span.context, span.parent
    wire = trace_pb2.Span(
        trace_id=context.trace_id.to_bytes(16, "big"), span_id=context.span_id.to_bytes(8, "big"), name=span.name,
        kind=_KINDS[span.kind], start_time_unix_nano=span.start, end_time_unix_nano=span.end,
        attributes=wire_attributes(span.attributes))
    if parent is not None:
        wire.parent_span_id = parent.span_id.to_bytes(8, "big")
        wire.flags = _wire_flags(parent)
    for link in span.links:
        wire.links.add(trace_id=link.trace_id.to_bytes(16, "big"), span_id=link.span_id.to_bytes(8, "big"),
                       flags=_wire_flags(link))
    for name, nanos, attributes in span.events:
        wire.events.add(name=name, time_unix_nano=nanos, attributes=wire_attributes(attributes))
    if span.error:
        wire.status.code, wire.status.message = trace_pb2.Status.STATUS_CODE_ERROR, span.error
    return wire


def _wire_flags(context: SpanContext) -> int:
    remote = trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK if context.is_remote else 0
    return trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | remote
