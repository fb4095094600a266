"""The OTLP receiver over real gRPC."""

from __future__ import annotations

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from harness.receiver import receiving


async def test_the_receiver_takes_traces_and_metrics_and_forgets_the_oldest() -> None:
    name = KeyValue(key="service.name", value=AnyValue(string_value="lm"))
    traces, metrics = trace_service_pb2.ExportTraceServiceRequest(), metrics_service_pb2.ExportMetricsServiceRequest()
    batch = traces.resource_spans.add()
    batch.resource.attributes.append(name)
    scope = batch.scope_spans.add()
    for number in range(5):
        scope.spans.add(name=str(number))
    other = metrics.resource_metrics.add()
    other.resource.attributes.append(name)
    other.scope_metrics.add().metrics.add(name="moshimesh.frames")
    async with (receiving(most_spans=3) as receiver,
                grpc.aio.insecure_channel(receiver.endpoint.removeprefix("http://")) as channel):
        await trace_service_pb2_grpc.TraceServiceStub(channel).Export(traces)
        await metrics_service_pb2_grpc.MetricsServiceStub(channel).Export(metrics)
    assert [(span.service, span.name) for span in receiver.spans] == [("lm", "2"), ("lm", "3"), ("lm", "4")]
    assert [(service, metric.name) for service, metric in receiver.metrics] == [("lm", "moshimesh.frames")]


async def test_a_receiver_that_hangs_never_answers() -> None:
    async with (receiving(hangs=True) as receiver,
                grpc.aio.insecure_channel(receiver.endpoint.removeprefix("http://")) as channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await trace_service_pb2_grpc.TraceServiceStub(channel).Export(
                trace_service_pb2.ExportTraceServiceRequest(), timeout=0.2)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_taken_port_is_named() -> None:
    async with receiving() as receiver:
        port = int(receiver.endpoint.rpartition(":")[2])
        with pytest.raises(OSError, match=f"port {port} is taken"):
            async with receiving(port):
                pass
