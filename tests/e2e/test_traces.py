"""Spans of every frame arrive over OTLP, in one trace a frame, from three processes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from scripts.local_mesh import LocalMesh
from tests.e2e.calls import GREEDY, call

HOPS = {"gateway.ingest": "gateway", "codec.encode": "codec", "lm.step": "lm", "codec.decode": "codec",
        "gateway.emit": "gateway"}


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver that keeps what it gets: (service name, span)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []

    async def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.aio.ServicerContext
                     ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    server, receiver = grpc.aio.server(), Receiver()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield receiver, f"http://127.0.0.1:{port}"
    await server.stop(0)


async def test_a_frame_is_a_trace(checkpoint: str, speech: npt.NDArray[np.float32],
                                  receiver: tuple[Receiver, str]) -> None:
    collected, endpoint = receiver
    parent = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    async with LocalMesh(checkpoint, slots=2, environment={"MOSHIMESH_OTLP_ENDPOINT": endpoint}) as mesh:
        answer = await call(mesh.target, speech[:24_000], traceparent=parent, **GREEDY)
    await asyncio.sleep(0)  # every service has sent its last spans before it ended

    traces: dict[bytes, list[tuple[str, Span]]] = defaultdict(list)
    for service, span in collected.spans:
        traces[span.trace_id].append((service, span))
    (session,) = (span for _, span in collected.spans if span.name == "session")
    assert (session.trace_id.hex(), session.parent_span_id.hex()) == ("ab" * 16, "cd" * 8)
    frames = [spans for spans in traces.values() if any(span.name == "frame" for _, span in spans)]
    assert len(frames) == len(answer.speech) + 1  # the delay line's frame has no answer, but a trace
    for spans in frames:
        (root,) = (span for _, span in spans if span.name == "frame")
        assert root.links[0].span_id == session.span_id
        by_id = {span.span_id: span for _, span in spans}
        hops = {span.name: (service, span) for service, span in spans if span.name in HOPS}
        if len(hops) < len(HOPS):
            assert set(HOPS) - set(hops) == {"codec.decode", "gateway.emit"}  # the delay line's
        for name, (service, span) in hops.items():
            assert service == HOPS[name]
            assert span.parent_span_id == root.span_id
            assert root.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= root.end_time_unix_nano
            parts = [part for part in by_id.values() if part.parent_span_id == span.span_id]
            assert {part.name for part in parts} == {f"{name}.queue", f"{name}.compute"}
