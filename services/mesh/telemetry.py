"""Spans on their way out: the only file of the traces that imports the OpenTelemetry SDK.

A frame's spans are made after the fact, for the few frames that are kept: with the ids that travelled in the frame and
the times that were measured anyway. So nothing of the SDK is touched until a frame is kept, and a finished span goes
straight to the batch processor, whose own thread sends it. docs/telemetry.md names every span and attribute.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

# Spans that may wait for the collector, 1 kB each: what a gateway makes in two seconds in which all frames of 50
# callers are late. Beyond that the oldest are dropped; a frame never waits.
WAITING_SPANS = 8192
# A collector that takes longer has lost its batch. Short, because the process can't end sooner.
EXPORT_S = 5.0
CLOSE_S = 3.0  # the last batches, when the process ends

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
Attributes: TypeAlias = Mapping[str, "str | bool | int | float | Sequence[int]"]
SpanEvent: TypeAlias = tuple[str, int, Attributes]
"""What happened, when (Unix nanoseconds), and more about it."""

_SCOPE = InstrumentationScope("moshimesh")
_OK, _ERROR = Status(StatusCode.UNSET), StatusCode.ERROR
logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").setLevel(logging.ERROR)  # not each of its retries


def service_resource(service: str) -> Resource:
    """What all that a process sends says about it; OTEL_RESOURCE_ATTRIBUTES adds pod and node."""
    ours = Resource.create({"service.instance.id": str(uuid.uuid4()), "process.pid": os.getpid()})
    return ours.merge(OTELResourceDetector().detect()).merge(Resource({"service.name": service}))


class FrameTracer:
    """Takes finished spans and sends them in the background; does nothing without a processor."""

    def __init__(self, processor: SpanProcessor | None = None, resource: Resource | None = None) -> None:
        self._processor, self._resource = processor, resource

    @classmethod
    def export_to(cls, endpoint: str, service: str) -> FrameTracer:
        """A tracer that sends to an OTLP/gRPC endpoint; one that does nothing when it is empty."""
        if not endpoint:
            return cls()
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https"), timeout=EXPORT_S)
        return cls(BatchSpanProcessor(exporter, max_queue_size=WAITING_SPANS, schedule_delay_millis=1000),
                   service_resource(service))

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere."""
        return self._processor is not None

    def emit(self, name: str, context: SpanContext, parent: SpanContext | None, start: int, end: int,
             attributes: Attributes, *, links: Sequence[SpanContext] = (), kind: SpanKind = SpanKind.INTERNAL,
             events: Sequence[SpanEvent] = (), error: str = "") -> None:
        """Send a span that is over; `start` and `end` in Unix nanoseconds, `error` what it ended with."""
        if self._processor is None:
            return
        self._processor.on_end(ReadableSpan(
            name, context, parent, self._resource, attributes,
            [Event(what, more, when) for what, when, more in events],
            [Link(link) for link in links], kind, status=Status(_ERROR, error) if error else _OK, start_time=start,
            end_time=end, instrumentation_scope=_SCOPE))

    def close(self) -> None:
        """Send what is left, for at most CLOSE_S: a collector that hangs must not hold up the end of the process."""
        if self._processor is not None:
            closing = threading.Thread(target=self._processor.shutdown, daemon=True)
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
