"""Spans on their way out: what is sent, what is dropped, and what a collector can do about it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.trace import SpanContext

import services
from harness.local_mesh import free_port
from services.mesh import otel_environment, telemetry
from services.mesh.otlp import LEAST_INT, MOST_INT, wire_value
from services.mesh.telemetry import FinishedSpan, FrameTracer, SpanSender, new_trace, service_resource
from tests.until import until

ROOT = Path(__file__).resolve().parent.parent.parent


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it gets; fails as often as it is told to."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.metadata: dict[str, str | bytes] = {}
        self.failures: list[grpc.StatusCode] = []
        self.calls = 0
        self.endpoint = ""

    async def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.aio.ServicerContext
                     ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata() or ())
        if self.failures:
            await context.abort(self.failures.pop(0), "not now")
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def names(self) -> list[str]:
        return [span.name for request in self.requests for resource in request.resource_spans
                for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    monkeypatch.setattr(telemetry, "RETRY_S", 0.05)
    server, collector = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield collector
    await server.stop(0)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing is remembered of another test's environment."""
    otel_environment.warn.cache_clear()
    service_resource.cache_clear()
    yield
    otel_environment.warn.cache_clear()
    service_resource.cache_clear()


def span(name: str = "a span", start: int = 1, end: int = 2, **attributes: int | str) -> FinishedSpan:
    return FinishedSpan(name, new_trace(), None, start, end, attributes)


async def send(endpoint: str, *spans: FinishedSpan) -> None:
    """Through a sender that is closed afterwards, on a thread: the collector is on this one's loop."""
    sender = SpanSender(endpoint, "test")
    for one in spans:
        sender.on_end(one)
    await asyncio.to_thread(sender.shutdown)


async def test_a_strangers_numbers_cost_nobody_a_trace(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """A frame's number is unsigned, and chosen by its caller; OTLP's integers are signed."""
    await send(collector.endpoint, span("before"), span("huge", sequence=2**64 - 1), span("tiny", offset=-2**70),
               span("never", start=-5), FinishedSpan("no id", SpanContext(2**200, 1, False), None, 1, 2, {}),
               span("after"))
    assert collector.names == ["before", "huge", "tiny", "after"]
    (line,) = caplog.messages
    assert line.startswith("2 spans were lost")


@pytest.mark.parametrize(("value", "field", "wire"), [
    (2**63 - 1, "int_value", MOST_INT), (2**63, "int_value", MOST_INT), (-2**63 - 1, "int_value", LEAST_INT),
    (True, "bool_value", True), (1.5, "double_value", 1.5), ("a", "string_value", "a")])
def test_values_as_otlp_has_them(value: object, field: str, wire: object) -> None:
    found = wire_value(value)
    assert found.WhichOneof("value") == field and getattr(found, field) == wire
    assert wire_value(None).WhichOneof("value") is None
    assert [one.int_value for one in wire_value((1, 2**80)).array_value.values] == [1, MOST_INT]


async def test_a_batch_is_tried_again_where_that_may_help(collector: Collector) -> None:
    collector.failures = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
    sender = SpanSender(collector.endpoint, "test")
    sender.on_end(span("a"))
    await until(lambda: collector.names)
    assert collector.names == ["a"] and collector.calls == 3
    collector.failures = [grpc.StatusCode.INVALID_ARGUMENT]
    sender.on_end(span("b"))
    await asyncio.to_thread(sender.shutdown)
    assert collector.names == ["a"] and collector.calls == 4


async def test_a_collector_without_traces_is_left_alone(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    collector.failures = [grpc.StatusCode.UNIMPLEMENTED]
    sender = SpanSender(collector.endpoint, "test")
    sender.on_end(span("a"))
    await until(lambda: caplog.messages)
    sender.on_end(span("b"))
    await asyncio.to_thread(sender.shutdown)
    assert (collector.calls, collector.names) == (1, [])
    assert [message for message in caplog.messages if "takes no traces" in message] == caplog.messages


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
                                     collector: Collector) -> None:
    monkeypatch.setattr(telemetry, "WAITING_SPANS", 100)
    sender = SpanSender(collector.endpoint, "test")
    for number in range(150):  # faster than a second, which is when the next batch goes
        sender.on_end(span(str(number)))
    await asyncio.to_thread(sender.shutdown)
    assert collector.names == [str(number) for number in range(50, 150)]
    assert [message for message in caplog.messages if message.startswith("50 spans were lost")]


async def test_the_environment_says_where_and_as_whom(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=a%20secret,broken,tenant=t")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=shop,k8s.pod.name=here")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    tracer = FrameTracer.export_to("", "gateway")
    assert tracer.enabled
    tracer.send(span())
    await until(lambda: collector.requests)
    await asyncio.to_thread(tracer.close)
    assert (collector.metadata["api-key"], collector.metadata["tenant"]) == ("a secret", "t")
    said = {pair.key: pair.value.string_value for pair in collector.requests[0].resource_spans[0].resource.attributes}
    assert (said["service.name"], said["k8s.pod.name"]) == ("shop", "here")
    assert said["service.version"] == services.__version__


def test_the_name_of_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    assert service_resource("lm").attributes["service.name"] == "lm"
    service_resource.cache_clear()
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=attribute")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "variable")
    assert service_resource("lm").attributes["service.name"] == "variable"


def test_the_version_is_that_of_the_release() -> None:
    found = re.search('^version = "(.*)"$', (ROOT / "protos" / "python" / "pyproject.toml").read_text(), re.M)
    assert found is not None and found[1] == services.__version__


@pytest.mark.parametrize("endpoint", ["http://[::1", "nothing at all", ":::", "ftp://a", f"localhost:{free_port()}",
                                      "https://localhost:9"])
def test_an_endpoint_that_leads_nowhere_prevents_no_start(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CERTIFICATE", "CLIENT_KEY"):
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", "/nowhere")
    monkeypatch.setattr(telemetry, "CLOSE_S", 0.5)
    tracer = FrameTracer.export_to(endpoint, "test")
    tracer.send(span())
    tracer.close()
