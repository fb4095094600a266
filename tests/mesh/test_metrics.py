"""Instruments: what is counted where, what is bounded, and what the two ways out of the process say."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import Iterator

import pytest
from opentelemetry.trace import SpanContext, TraceFlags

from harness.local_mesh import free_port
from services.mesh.config import ServiceConfig
from services.mesh.device import device_memory
from services.mesh.engine_metrics import watch
from services.mesh.metrics import MOST_SERIES, Metrics

KEPT = SpanContext(0xAB << 120, 0xCD << 56, False, TraceFlags(1))


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    started = Metrics.start(ServiceConfig(metrics_port=free_port()), "test")
    yield started
    started.close()


async def scrape(metrics: Metrics, accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{metrics.port}/metrics", headers={"Accept": accept})
    answer = await asyncio.to_thread(lambda: urllib.request.urlopen(request).read())
    return str(answer.decode())


async def test_a_bucket_holds_what_is_at_most_its_bound(metrics: Metrics) -> None:
    histogram = metrics.histogram("moshimesh.thing", "s", "A thing.", (0.05, 0.08, 0.1))
    for value in (0.01, 0.08, 0.080001, 5.0):
        histogram.series(kind="a").record(value)
    text = await scrape(metrics)
    assert 'moshimesh_thing_seconds_bucket{kind="a",le="0.05"} 1.0' in text
    assert 'moshimesh_thing_seconds_bucket{kind="a",le="0.08"} 2.0' in text
    assert 'moshimesh_thing_seconds_bucket{kind="a",le="0.1"} 3.0' in text
    assert 'moshimesh_thing_seconds_bucket{kind="a",le="+Inf"} 4.0' in text
    assert 'moshimesh_thing_seconds_count{kind="a"} 4.0' in text
    (point,) = metrics.to_otlp()[0].histogram.data_points
    assert (point.count, list(point.bucket_counts), point.min, point.max) == (4, [1, 1, 1, 1], 0.01, 5.0)


async def test_an_exemplar_names_the_trace_that_was_kept(metrics: Metrics) -> None:
    series = metrics.histogram("moshimesh.thing", "s", "A thing.", (0.08,)).series()
    series.record(0.01)
    series.record(0.3, KEPT)
    text = await scrape(metrics, "application/openmetrics-text; version=1.0.0")
    late = next(line for line in text.splitlines() if 'thing_seconds_bucket{le="+Inf"}' in line)
    assert f'trace_id="{KEPT.trace_id:032x}"' in late and f'span_id="{KEPT.span_id:016x}"' in late
    assert "#" not in next(line for line in text.splitlines() if 'thing_seconds_bucket{le="0.08"}' in line)
    (point,) = metrics.to_otlp()[0].histogram.data_points
    (exemplar,) = point.exemplars
    assert (exemplar.as_double, int.from_bytes(exemplar.trace_id, "big"), int.from_bytes(exemplar.span_id, "big")) == (
        0.3, KEPT.trace_id, KEPT.span_id)


async def test_series_are_bounded(metrics: Metrics) -> None:
    histogram = metrics.histogram("moshimesh.thing", "s", "A thing.", (0.08,))
    counter = metrics.counter("moshimesh.things", "{thing}", "Things.")
    for number in range(3 * MOST_SERIES):
        histogram.series(kind=str(number)).record(0.01)
        counter.add(kind=str(number))
    text = await scrape(metrics)
    assert 0 < text.count("moshimesh_thing_seconds_count{") <= MOST_SERIES + 1
    assert 0 < text.count("moshimesh_things_total{") <= MOST_SERIES + 1
    assert f'moshimesh_things_total{{kind="",otel_metric_overflow="true"}} {2.0 * MOST_SERIES}' in text


async def test_a_gpu_s_memory_is_there_where_there_is_one(metrics: Metrics) -> None:
    watch(metrics, (), lambda: (3000, 80_000))
    text = await scrape(metrics)
    assert "hw_gpu_memory_usage_bytes 3000.0\n" in text and "hw_gpu_memory_limit_bytes 80000.0\n" in text
    assert device_memory("cpu") is None


def test_without_a_reader_nothing_is_started() -> None:
    metrics = Metrics.start(ServiceConfig(), "test")
    assert not metrics.enabled
    metrics.counter("moshimesh.things", "{thing}", "Things.").add()
    metrics.close()


def test_a_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"can't serve metrics on 127.0.0.1:{port} .*--metrics-port"):
            Metrics.start(ServiceConfig(metrics_port=port), "test")


def test_metrics_are_for_this_machine_unless_it_is_said_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for host, said in (("127.0.0.1", "for this machine only; --metrics-host 0.0.0.0"),
                       ("0.0.0.0", "for every client that can")):
        port = free_port()
        metrics = Metrics.start(ServiceConfig(metrics_port=port, metrics_host=host), "test")
        try:
            assert said in caplog.messages[-1]
            with socket.socket() as other:  # a port that is bound to everything leaves no room for another address
                if host == "127.0.0.1":
                    other.bind(("127.0.0.2", port))
                else:
                    with pytest.raises(OSError, match="in use"):
                        other.bind(("127.0.0.2", port))
        finally:
            metrics.close()


def test_a_collector_that_is_not_there_prevents_nothing() -> None:
    metrics = Metrics.start(ServiceConfig(otlp_endpoint="not a url, nor a host:port"), "test")
    assert metrics.enabled
    metrics.close()
