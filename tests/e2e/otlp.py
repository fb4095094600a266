"""An OTLP collector for tests, and what a test wants to know about the spans that came."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2

HOPS = {"gateway.ingest": "gateway", "codec.encode": "codec", "lm.step": "lm", "codec.decode": "codec",
        "gateway.emit": "gateway"}
REMOTE = ("codec.encode", "lm.step", "codec.decode")


@dataclass
class Span:
    """One span, its service and its attributes in Python's terms."""

    service: str
    wire: trace_pb2.Span
    attributes: dict[str, object]
    resource: dict[str, object]

    @property
    def name(self) -> str:
        return self.wire.name

    @property
    def begin(self) -> int:
        return self.wire.start_time_unix_nano

    @property
    def end(self) -> int:
        return self.wire.end_time_unix_nano

    @property
    def ms(self) -> float:
        return (self.end - self.begin) / 1e6


@dataclass
class Frame:
    """The trace of one kept frame."""

    root: Span
    spans: list[Span]

    @property
    def sequence(self) -> object:
        return self.root.attributes["moshimesh.sequence"]

    @property
    def because(self) -> object:
        return self.root.attributes["moshimesh.kept_because"]

    def children(self, span: Span) -> list[Span]:
        return [child for child in self.spans if child.wire.parent_span_id == span.wire.span_id]

    @property
    def hops(self) -> dict[str, Span]:
        return {span.name: span for span in self.children(self.root)}

    def part(self, hop: str, part: str) -> Span:
        (found,) = (span for span in self.children(self.hops[hop]) if span.name == f"{hop}.{part}")
        return found

    def check(self) -> None:
        """Every span has its parent in this trace and lies inside of it, and the hops leave nothing unexplained."""
        by_id = {span.wire.span_id: span for span in self.spans}
        assert len(by_id) == len(self.spans)
        for span in self.spans:
            assert span.begin <= span.end, span
            if span is not self.root:
                parent = by_id[span.wire.parent_span_id]
                assert parent.begin <= span.begin and span.end <= parent.end, (parent.name, span)
        at = self.root.begin
        for hop in sorted(self.hops.values(), key=lambda span: span.begin):
            assert hop.service == HOPS[hop.name]
            assert hop.begin == at
            at = hop.end
            inside = hop.begin
            parts = sorted(self.children(hop), key=lambda span: (span.begin, span.end))
            expected = {f"{hop.name}.queue", f"{hop.name}.compute"}
            if hop.name != "gateway.ingest":
                expected.add(f"{hop.name}.transit")
            assert {part.name for part in parts} == expected
            for part in parts:
                assert part.begin == inside
                inside = part.end
            assert inside == hop.end


@dataclass
class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it gets."""

    spans: list[Span] = field(default_factory=list)
    endpoint: str = ""

    async def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.aio.ServicerContext
                     ) -> trace_service_pb2.ExportTraceServiceResponse:
        for group in request.resource_spans:
            resource = {a.key: _value(a.value) for a in group.resource.attributes}
            self.spans += [Span(str(resource["service.name"]), span,
                                {a.key: _value(a.value) for a in span.attributes}, resource)
                           for scope in group.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def frames(self) -> list[Frame]:
        """The kept frames, by sequence."""
        traces: dict[bytes, list[Span]] = defaultdict(list)
        for span in self.spans:
            traces[span.wire.trace_id].append(span)
        frames = [Frame(span, traces[span.wire.trace_id]) for span in self.named("frame")]
        return sorted(frames, key=lambda frame: frame.sequence)  # type: ignore[arg-type, return-value]


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """A running one."""
    server, collected = grpc.aio.server(), Receiver()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collected, server)
    collected.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield collected
    await server.stop(0)


@contextlib.asynccontextmanager
async def hanging() -> AsyncIterator[str]:
    """The endpoint of a collector that accepts everything and never answers."""
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    return getattr(value, str(kind))


def sequences(frames: Sequence[Frame]) -> list[object]:
    return [frame.sequence for frame in frames]
