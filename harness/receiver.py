"""An OTLP/gRPC receiver in this process: what a collector would get, for tests and tools.

    async with receiving() as receiver:
        ...  # start a mesh with MOSHIMESH_OTLP_ENDPOINT=receiver.endpoint
        frames = frames_of(receiver.spans)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from services.mesh.otlp import wire_attributes

MOST_SPANS = 500_000  # 25 000 frames with all their hops; a bench that overloads a mesh for a minute makes 15 000
MOST_METRICS = 20_000  # data points come every few seconds; the newest are the ones that count
Value = str | int | float | bool | list["Value"] | None
Attributes = dict[str, Value]


@dataclass(frozen=True)
class Event:
    """Something that happened within a span."""

    name: str
    unix_nanos: int
    attributes: Attributes


@dataclass(frozen=True)
class Span:
    """A span as it arrived, with the service that sent it; ids in hex, times in Unix nanoseconds."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: Attributes
    links: Sequence[tuple[str, str]]
    events: Sequence[Event]
    resource: Attributes

    @property
    def ms(self) -> float:
        """Its length."""
        return (self.end - self.start) / 1e6


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the newest of what it gets; the oldest spans leave when there are MOST_SPANS."""

    def __init__(self, most_spans: int = MOST_SPANS, hangs: bool = False) -> None:
        """`hangs`: take every request and never answer, as a collector does whose disk is full."""
        self.endpoint = ""
        self._exports: deque[trace_service_pb2.ExportTraceServiceRequest] = deque()  # not looked into yet
        self._waiting = 0  # spans in there
        self._spans: deque[Span] = deque(maxlen=most_spans)
        self._most_spans = most_spans
        self.metrics: deque[tuple[str, Metric]] = deque(maxlen=MOST_METRICS)
        """(service, metric), in the order of arrival."""
        self._hangs = hangs
        self._came = asyncio.Event()

    async def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.aio.ServicerContext
                     ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Spans, from TraceService. They are read when somebody asks, not while a mesh is measured."""
        await self._hang()
        self._exports.append(request)
        self._waiting += _size(request)
        while self._waiting - _size(self._exports[0]) > self._most_spans:
            self._waiting -= _size(self._exports.popleft())
        self._came.set()
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> Sequence[Span]:
        """What has come, in the order of arrival."""
        while self._exports:
            self._spans.extend(spans_of(self._exports.popleft()))
        self._waiting = 0
        return self._spans

    async def export_metrics(self, request: metrics_service_pb2.ExportMetricsServiceRequest) -> None:
        """Metrics, from MetricsService."""
        await self._hang()
        for resource in request.resource_metrics:
            service = str(attributes_of(resource.resource.attributes).get("service.name", ""))
            self.metrics.extend((service, metric) for scope in resource.scope_metrics for metric in scope.metrics)
        self._came.set()

    async def came(self, within_s: float) -> bool:
        """Wait for the next export; whether there was one."""
        self._came.clear()
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(self._came.wait(), within_s)
        return self._came.is_set()

    async def _hang(self) -> None:
        if self._hangs:
            await asyncio.Event().wait()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Both services call their method Export, so one object can't be both."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def Export(self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: grpc.aio.ServicerContext
                     ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        await self._receiver.export_metrics(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


@contextlib.asynccontextmanager
async def receiving(port: int = 0, most_spans: int = MOST_SPANS, hangs: bool = False) -> AsyncIterator[Receiver]:
    """A receiver that listens on this machine while the block runs. Raises OSError when the port is taken."""
    server, receiver = grpc.aio.server(options=[("grpc.so_reuseport", 0)]), Receiver(most_spans, hangs)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(receiver), server)
    try:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise OSError(f"port {port} is taken")
    receiver.endpoint = f"http://127.0.0.1:{bound}"
    await server.start()
    try:
        yield receiver
    finally:
        await server.stop(0)


def spans_of(request: trace_service_pb2.ExportTraceServiceRequest) -> list[Span]:
    """What an export says."""
    spans = []
    for batch in request.resource_spans:
        resource = attributes_of(batch.resource.attributes)
        service = str(resource.get("service.name", ""))
        spans += [Span(service, span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
                       span.start_time_unix_nano, span.end_time_unix_nano, attributes_of(span.attributes),
                       [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                       [Event(event.name, event.time_unix_nano, attributes_of(event.attributes))
                        for event in span.events], resource)
                  for scope in batch.scope_spans for span in scope.spans]
    return spans


def _size(request: trace_service_pb2.ExportTraceServiceRequest) -> int:
    return sum(len(scope.spans) for batch in request.resource_spans for scope in batch.scope_spans)


def attributes_of(pairs: Iterable[KeyValue]) -> Attributes:
    """Attributes as Python values."""
    return {pair.key: _value(pair.value) for pair in pairs}


def save(spans: Iterable[Span], path: Path) -> None:
    """Write spans as OTLP/JSON, as collectors and Jaeger read it."""
    request = trace_service_pb2.ExportTraceServiceRequest()
    batches: dict[str, trace_pb2.ScopeSpans] = {}
    for span in spans:
        key = json.dumps(span.resource, sort_keys=True)
        if key not in batches:
            batch = request.resource_spans.add(resource=Resource(attributes=wire_attributes(span.resource)))
            batches[key] = batch.scope_spans.add()
        batches[key].spans.add(
            name=span.name, trace_id=bytes.fromhex(span.trace_id), span_id=bytes.fromhex(span.span_id),
            parent_span_id=bytes.fromhex(span.parent_id), start_time_unix_nano=span.start,
            end_time_unix_nano=span.end, attributes=wire_attributes(span.attributes),
            links=[trace_pb2.Span.Link(trace_id=bytes.fromhex(trace), span_id=bytes.fromhex(one))
                   for trace, one in span.links],
            events=[trace_pb2.Span.Event(name=event.name, time_unix_nano=event.unix_nanos,
                                         attributes=wire_attributes(event.attributes)) for event in span.events])
    document = MessageToDict(request, use_integers_for_enums=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_with_ids(document, lambda text: base64.b64decode(text).hex()), indent=1) + "\n")


def read(path: Path) -> list[Span]:
    """Spans from OTLP/JSON: one document, or one a line as the collector's file exporter writes. Raises ValueError."""
    text = path.read_text()
    try:
        documents = [json.loads(text)]
    except json.JSONDecodeError:
        documents = [json.loads(line) for line in text.splitlines() if line.strip()]
    spans = []
    for document in documents:
        document = _with_ids(document, lambda text: base64.b64encode(bytes.fromhex(text)).decode())
        request = trace_service_pb2.ExportTraceServiceRequest()
        try:
            ParseDict(document, request, ignore_unknown_fields=True)
        except ParseError as error:
            raise ValueError(f"not OTLP/JSON: {error}") from None
        spans += spans_of(request)
    return spans


def _with_ids(node: Any, change: Any) -> Any:
    """The document with its trace and span ids changed: OTLP/JSON has them in hex, protobuf's JSON in base 64."""
    if isinstance(node, dict):
        return {key: change(value) if key in ("traceId", "spanId", "parentSpanId") else _with_ids(value, change)
                for key, value in node.items()}
    return [_with_ids(one, change) for one in node] if isinstance(node, list) else node


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind in ("string_value", "bool_value", "int_value", "double_value") else None
