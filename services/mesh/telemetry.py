"""Traces: the only file that imports the OpenTelemetry SDK.

A frame is a trace. Its context travels in `FrameContext.traceparent`, since metadata is sent once per call; each hop
turns the timings it measured anyway into a span with a `queue` and a `compute` child. Without an endpoint, or for a
frame that was not sampled, this costs one look at a character.
"""

from __future__ import annotations

from moshimesh.audio.v1 import audio_pb2
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags

from services.mesh.batching import Timing

_SAMPLED = frozenset("13579bdf")  # last digit of a traceparent whose lowest flag, "sampled", is set
Attributes = dict[str, str | int]


class FrameTracer:
    """Makes the spans of one service's hops."""

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        self._tracer = tracer
        self._provider: TracerProvider | None = None

    @classmethod
    def export_to(cls, endpoint: str, service: str) -> FrameTracer:
        """A tracer that sends to an OTLP/gRPC endpoint in the background; one that does nothing when it is empty."""
        if not endpoint:
            return cls()
        provider = TracerProvider(resource=Resource.create({"service.name": service}))
        provider.add_span_processor(BatchSpanProcessor(
            OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https"))))
        tracer = cls(provider.get_tracer("moshimesh"))
        tracer._provider = provider
        return tracer

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere."""
        return self._tracer is not None

    def start(self, name: str, start_unix_nanos: int, attributes: Attributes, *, traceparent: str = "",
              link: Span | None = None) -> Span | None:
        """Begin a span that the caller ends, linked to another trace's span; None when tracing is off."""
        if self._tracer is None:
            return None
        return self._tracer.start_span(name, _parent(traceparent), start_time=start_unix_nanos, attributes=attributes,
                                       links=[trace.Link(link.get_span_context())] if link else None)

    def hop(self, name: str, context: audio_pb2.FrameContext, timing: Timing) -> None:
        """Record one hop of one frame, with what it waited and what it computed."""
        if self._tracer is None or context.traceparent[-1:] not in _SAMPLED:
            return
        attributes: Attributes = {"moshimesh.sequence": context.sequence, "moshimesh.batch_size": timing.batch_size,
                                  "moshimesh.tick": timing.tick}
        span = self._tracer.start_span(name, _parent(context.traceparent), attributes=attributes,
                                       start_time=timing.received)
        inside = trace.set_span_in_context(span)
        for part, begin, end in (("queue", timing.received, timing.started),
                                 ("compute", timing.started, timing.finished)):
            self._tracer.start_span(f"{name}.{part}", inside, start_time=begin).end(end)
        span.end(timing.finished)

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def traceparent_of(span: Span | None) -> str:
    """The W3C form of a span's context; empty for none."""
    if span is None:
        return ""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _parent(traceparent: str) -> Context | None:
    """The remote parent that a traceparent names; None when it is empty or malformed."""
    try:
        _, trace_id, span_id, flags = traceparent.split("-")
        context = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
    except ValueError:
        return None
    return trace.set_span_in_context(NonRecordingSpan(context)) if context.is_valid else None
