"""Spans on their way out: the only file of the traces that imports the OpenTelemetry SDK.

A frame's spans are made after the fact, for the few frames that are kept: with the ids that travelled in the frame and
the times that were measured anyway. So nothing of the SDK is touched until a frame is kept, and a finished span goes
straight to the batch processor, whose own thread sends it. docs/telemetry.md names every span and attribute.

Under overload every frame is kept, and then the SDK's own span objects would cost as much as the calls: 60 us each to
be encoded, of the same interpreter. Ours are written to OTLP's messages directly, in a fifth of that.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

# Spans that may wait for the collector, 1 kB each: what a gateway makes in two seconds in which all frames of 50
# callers are late. Beyond that the oldest are dropped; a frame never waits.
WAITING_SPANS = 8192
# A collector that takes longer has lost its batch; the spans that come meanwhile must find room.
EXPORT_S = 5.0
CLOSE_S = 3.0  # the last batches, when the process ends

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
Attributes: TypeAlias = Mapping[str, "str | bool | int | float | Sequence[int]"]
SpanEvent: TypeAlias = tuple[str, int, Attributes]
"""What happened, when (Unix nanoseconds), and more about it."""

_KINDS = {SpanKind.INTERNAL: trace_pb2.Span.SPAN_KIND_INTERNAL, SpanKind.SERVER: trace_pb2.Span.SPAN_KIND_SERVER,
          SpanKind.CLIENT: trace_pb2.Span.SPAN_KIND_CLIENT}
_SCOPE = InstrumentationScope(name="moshimesh")
logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").setLevel(logging.ERROR)  # not each of its retries


def service_resource(service: str) -> Resource:
    """What all that a process sends says about it; OTEL_RESOURCE_ATTRIBUTES adds pod and node."""
    ours = Resource.create({"service.instance.id": str(uuid.uuid4()), "process.pid": os.getpid()})
    return ours.merge(OTELResourceDetector().detect()).merge(Resource({"service.name": service}))


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

    def on_end(self, span: Any) -> None:
        """Take a span; never wait."""

    def shutdown(self) -> None:
        """Send what is left."""


class _Exporter(OTLPSpanExporter):
    """The SDK's exporter, with its connection, retries and options, for our spans."""

    def __init__(self, endpoint: str, resource: Resource) -> None:
        super().__init__(endpoint=endpoint, insecure=not endpoint.startswith("https"), timeout=EXPORT_S)
        self._resource = resource_pb2.Resource(attributes=_wire_attributes(resource.attributes))

    def _translate_data(self, data: Sequence[Any]) -> ExportTraceServiceRequest:
        return ExportTraceServiceRequest(resource_spans=[trace_pb2.ResourceSpans(
            resource=self._resource,
            scope_spans=[trace_pb2.ScopeSpans(scope=_SCOPE, spans=[_wire_span(span) for span in data])])])


class FrameTracer:
    """Takes finished spans and sends them in the background; does nothing without a sink."""

    def __init__(self, sink: SpanSink | None = None) -> None:
        self._sink = sink

    @classmethod
    def export_to(cls, endpoint: str, service: str) -> FrameTracer:
        """A tracer that sends to an OTLP/gRPC endpoint; one that does nothing when it is empty."""
        if not endpoint:
            return cls()
        return cls(BatchSpanProcessor(_Exporter(endpoint, service_resource(service)), max_queue_size=WAITING_SPANS,
                                      schedule_delay_millis=1000))

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


def _wire_span(span: FinishedSpan) -> trace_pb2.Span:
    context, parent = span.context, span.parent
    wire = trace_pb2.Span(
        trace_id=context.trace_id.to_bytes(16, "big"), span_id=context.span_id.to_bytes(8, "big"), name=span.name,
        kind=_KINDS[span.kind], start_time_unix_nano=span.start, end_time_unix_nano=span.end,
        attributes=_wire_attributes(span.attributes))
    if parent is not None:
        wire.parent_span_id = parent.span_id.to_bytes(8, "big")
        wire.flags = _wire_flags(parent)
    for link in span.links:
        wire.links.add(trace_id=link.trace_id.to_bytes(16, "big"), span_id=link.span_id.to_bytes(8, "big"),
                       flags=_wire_flags(link))
    for name, nanos, attributes in span.events:
        wire.events.add(name=name, time_unix_nano=nanos, attributes=_wire_attributes(attributes))
    if span.error:
        wire.status.code, wire.status.message = trace_pb2.Status.STATUS_CODE_ERROR, span.error
    return wire


def _wire_flags(context: SpanContext) -> int:
    remote = trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK if context.is_remote else 0
    return trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | remote


def _wire_attributes(attributes: Mapping[str, Any]) -> Iterator[KeyValue]:
    for key, value in attributes.items():
        yield KeyValue(key=key, value=_wire_value(value))


def _wire_value(value: Any) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(array_value=ArrayValue(values=[_wire_value(item) for item in value]))
