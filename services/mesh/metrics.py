"""Metrics: instruments that cost next to nothing to record, and the two ways out of the process.

Beside telemetry.py the only file that imports the OpenTelemetry SDK. A frame is counted in 16 places, and the SDK's own
`record` would add a quarter to all that the gateway does for a frame (measured in docs/decisions.md). So the
instruments here are plain numbers in plain lists, written by one thread; the SDK's readers ask for them at a scrape
(`--metrics-port`, Prometheus and OpenMetrics) or when it is time to push (`--otlp-endpoint`). docs/telemetry.md lists
all metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.trace import SpanContext
from prometheus_client import CollectorRegistry
from prometheus_client.core import Exemplar as OpenMetricsExemplar
from prometheus_client.core import HistogramMetricFamily

from services.mesh import otel_environment
from services.mesh.config import ServiceConfig
from services.mesh.metrics_page import MetricsPage
from services.mesh.metrics_push import PUSH_MS, MetricsPush
from services.mesh.otlp import wire_attributes
from services.mesh.telemetry import service_resource

log = logging.getLogger(__name__)

Attributes: TypeAlias = Mapping[str, str]
Reading: TypeAlias = tuple[Attributes, float]

SCOPE = "moshimesh"
# Series of one instrument. What we count by is short (hops, replicas, reasons); a mistake must not fill the memory of
# the system that stores it. The rest is counted together, as the SDK does:
# https://opentelemetry.io/docs/specs/otel/metrics/sdk/#overflow-attribute
MOST_SERIES = 200
OVERFLOW: Attributes = {"otel.metric.overflow": "true"}
PUSH_EVERY_MS = 15_000.0  # as often as Prometheus usually scrapes; OTEL_METRIC_EXPORT_INTERVAL changes it
CLOSE_MS = 2_000  # a collector that hangs must not hold up the end of a process

# Upper bounds in seconds. The deadline of a frame, 80 ms, is one of them, and around it they lie close.
FRAME_BOUNDS_S = (.002, .005, .01, .015, .02, .03, .04, .05, .06, .07, .08, .09, .1, .12, .16, .24, .32, .5, 1., 2.)
PART_BOUNDS_S = (.0001, .00025, .0005, .001, .002, .005, .01, .015, .02, .03, .04, .05, .06, .08, .1, .16, .32, 1.)


class Series:
    """One histogram under one set of attributes."""

    __slots__ = ("attributes", "bounds", "counts", "exemplars", "highest", "lowest", "total")

    def __init__(self, bounds: Sequence[float], attributes: Attributes) -> None:
        self.bounds, self.attributes = bounds, attributes
        self.counts = [0] * (len(bounds) + 1)  # a bucket holds what is at most its bound; the last one the rest
        self.total = 0.0
        self.lowest, self.highest = math.inf, -math.inf
        self.exemplars: dict[int, tuple[float, int, SpanContext]] = {}  # the last of each bucket: value, when, trace

    def record(self, value: float, kept: SpanContext | None = None) -> None:
        """Count a value; `kept` is a trace that explains it, if one was sent."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if value < self.lowest:
            self.lowest = value
        if value > self.highest:
            self.highest = value
        if kept is not None:
            self.exemplars[bucket] = value, time.time_ns(), kept


class _Instrument:
    """What has a name and a unit (UCUM, https://opentelemetry.io/docs/specs/semconv/general/metrics/)."""

    def __init__(self, name: str, unit: str, description: str) -> None:
        self.name, self.unit, self.description = name, unit, description


class Histogram(_Instrument):
    """How values are spread."""

    def __init__(self, name: str, unit: str, description: str, bounds: Sequence[float]) -> None:
        super().__init__(name, unit, description)
        self.bounds = bounds
        self._series: dict[tuple[str, ...], Series] = {}

    def series(self, **attributes: str) -> Series:
        """The histogram of one set of attributes; looking it up is slow, so keep it to record often."""
        key = tuple(attributes.values())
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= MOST_SERIES:
                key, attributes = tuple(OVERFLOW.values()), dict(OVERFLOW)
            found = self._series.setdefault(key, Series(self.bounds, attributes))
        return found

    def all(self) -> list[Series]:
        """Every series so far."""
        return list(self._series.values())


class Counter(_Instrument):
    """How often something happened."""

    def __init__(self, name: str, unit: str, description: str) -> None:
        super().__init__(name, unit, description)
        self._values: dict[tuple[tuple[str, str], ...], float] = {}

    def add(self, amount: float = 1, **attributes: str) -> None:
        """Count. An amount of 0 lets the series exist before its first event, so that its rate is right."""
        key = tuple(attributes.items())
        if key not in self._values and len(self._values) >= MOST_SERIES:
            key = tuple(OVERFLOW.items())
        self._values[key] = self._values.get(key, 0) + amount

    def read(self) -> list[Reading]:
        """Every series so far."""
        return [(dict(key), value) for key, value in list(self._values.items())]


class Metrics:
    """The instruments of one process. Without a port and an endpoint they exist, but are not read."""

    def __init__(self) -> None:
        self.enabled = False
        self.port = 0
        self._started_nanos = time.time_ns()
        self._histograms: list[Histogram] = []
        self._provider: MeterProvider | None = None
        self._page: MetricsPage | None = None

    @classmethod
    def start(cls, config: ServiceConfig, service: str) -> Metrics:
        """The metrics of a service, readable where its config and OpenTelemetry's variables say.

        Raises OSError when the port is taken. What prevents a push is only a line in the log.
        """
        metrics = cls()
        readers: list[sdk.MetricReader] = []
        if config.metrics_port and not otel_environment.disabled():
            registry = CollectorRegistry()
            readers.append(PrometheusMetricReader(scope_info_enabled=False, registry=registry))
            registry.register(_Collector(metrics))
            metrics._page = _page(registry, config)
            metrics.port = metrics._page.port
        if endpoint := otel_environment.otlp_endpoint(config.otlp_endpoint, "metrics"):
            try:
                readers.append(sdk.PeriodicExportingMetricReader(
                    MetricsPush(endpoint, metrics.to_otlp),
                    otel_environment.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", PUSH_EVERY_MS),
                    otel_environment.milliseconds("OTEL_METRIC_EXPORT_TIMEOUT", PUSH_MS)))
            except Exception as error:
                log.warning("metrics can't be pushed to %s, so none are: %s", endpoint, error)
        if readers:
            metrics.enabled = True
            metrics._provider = MeterProvider(readers, service_resource(service), exemplar_filter=
                                              AlwaysOffExemplarFilter(), shutdown_on_exit=False)
            _watch_process(metrics)
        return metrics

    def histogram(self, name: str, unit: str, description: str, bounds: Sequence[float]) -> Histogram:
        """A new histogram with these upper bounds."""
        histogram = Histogram(name, unit, description, bounds)
        self._histograms.append(histogram)
        return histogram

    def counter(self, name: str, unit: str, description: str) -> Counter:
        """A new counter."""
        counter = Counter(name, unit, description)
        self.total(name, unit, description, counter.read)
        return counter

    def total(self, name: str, unit: str, description: str, read: Callable[[], Iterable[Reading]]) -> None:
        """A counter that is kept elsewhere. `read`, here and below, is called on a reader's thread."""
        if self._provider is not None:
            self._provider.get_meter(SCOPE).create_observable_counter(name, [_observe(read)], unit, description)

    def gauge(self, name: str, unit: str, description: str, read: Callable[[], Iterable[Reading]]) -> None:
        """What `read` says at every scrape or push."""
        if self._provider is not None:
            self._provider.get_meter(SCOPE).create_observable_gauge(name, [_observe(read)], unit, description)

    def amount(self, name: str, unit: str, description: str, read: Callable[[], Iterable[Reading]]) -> None:
        """A gauge whose values over several processes may be added up."""
        if self._provider is not None:
            self._provider.get_meter(SCOPE).create_observable_up_down_counter(name, [_observe(read)], unit, description)

    def close(self) -> None:
        """Push what is left, for CLOSE_MS at most."""
        if self._provider is not None:
            try:
                self._provider.shutdown(CLOSE_MS)
            except Exception as error:  # the SDK's own kind, for a reader that did not end in time
                log.debug("the last metrics were not pushed: %s", error)
        if self._page is not None:
            self._page.close()

    def to_otlp(self) -> list[metrics_pb2.Metric]:
        """The histograms as they are pushed."""
        now = time.time_ns()
        return [metrics_pb2.Metric(
            name=histogram.name, description=histogram.description, unit=histogram.unit,
            histogram=metrics_pb2.Histogram(
                aggregation_temporality=metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE,
                data_points=[self._point(series, now) for series in histogram.all()]))
            for histogram in self._histograms]

    def to_families(self) -> Iterator[HistogramMetricFamily]:
        """The histograms as prometheus_client takes them, named as the SDK's exporter names what it exports."""
        for histogram in self._histograms:
            every = histogram.all()
            labels = sorted({label for series in every for label in series.attributes})
            family = HistogramMetricFamily(histogram.name.replace(".", "_"), histogram.description, labels=labels,
                                           unit={"s": "seconds"}.get(histogram.unit, ""))
            for series in every:
                family.add_metric([series.attributes.get(label, "") for label in labels], _buckets(series),
                                  series.total)
            yield family

    def _point(self, series: Series, now: int) -> metrics_pb2.HistogramDataPoint:
        counts = list(series.counts)  # the others go on counting; the number must be the sum of these
        point = metrics_pb2.HistogramDataPoint(
            attributes=wire_attributes(series.attributes), start_time_unix_nano=self._started_nanos,
            time_unix_nano=now, count=sum(counts), sum=series.total, bucket_counts=counts,
            explicit_bounds=series.bounds)
        if point.count:
            point.min, point.max = series.lowest, series.highest
        for value, when, kept in list(series.exemplars.values()):
            point.exemplars.add(as_double=value, time_unix_nano=when, trace_id=kept.trace_id.to_bytes(16, "big"),
                                span_id=kept.span_id.to_bytes(8, "big"))
        return point


class _Collector:
    """Our histograms for a scrape, beside what the SDK's reader has registered."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Nothing that is known at the start."""
        return ()

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Called for every scrape."""
        return self._metrics.to_families()


def _page(registry: CollectorRegistry, config: ServiceConfig) -> MetricsPage:
    host, port = config.metrics_host, config.metrics_port
    try:
        page = MetricsPage(registry, host, port)
    except OSError as error:
        raise OSError(f"can't serve metrics on {host}:{port} ({error.strerror}); choose another port with "
                      "--metrics-port, or another address with --metrics-host") from None
    if host in ("127.0.0.1", "::1", "localhost"):
        log.info("metrics at http://%s:%d/metrics, for this machine only; --metrics-host 0.0.0.0 shows them to others",
                 host, port)
    else:
        log.info("metrics at http://%s:%d/metrics, for every client that can reach that address", host, port)
    return page


def _buckets(series: Series) -> list[tuple[str, float] | tuple[str, float, OpenMetricsExemplar]]:
    buckets: list[tuple[str, float] | tuple[str, float, OpenMetricsExemplar]] = []
    below = 0
    for number, (bound, count) in enumerate(zip((*series.bounds, math.inf), list(series.counts), strict=True)):
        below += count
        name = "+Inf" if bound == math.inf else str(bound)
        exemplar = series.exemplars.get(number)
        if exemplar is None:
            buckets.append((name, below))
        else:
            value, when, kept = exemplar
            trace = {"trace_id": f"{kept.trace_id:032x}", "span_id": f"{kept.span_id:016x}"}
            buckets.append((name, below, OpenMetricsExemplar(trace, value, when / 1e9)))
    return buckets


def _observe(read: Callable[[], Iterable[Reading]]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(value, attributes) for attributes, value in read()]


def _watch_process(metrics: Metrics) -> None:
    """https://opentelemetry.io/docs/specs/semconv/system/process-metrics/."""
    page = os.sysconf("SC_PAGE_SIZE")

    def memory() -> Iterable[Reading]:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return [({}, int(file.read().split()[1]) * page)]

    def cpu() -> Iterable[Reading]:
        times = os.times()
        return [({"cpu.mode": "user"}, times.user), ({"cpu.mode": "system"}, times.system)]

    metrics.amount("process.memory.usage", "By", "Physical memory of the process.", memory)
    metrics.total("process.cpu.time", "s", "CPU time of the process.", cpu)
    with contextlib.suppress(RuntimeError):  # no loop runs where metrics are made by themselves
        loop = asyncio.get_running_loop()
        metrics.amount("moshimesh.process.tasks", "{task}", "Tasks of the process's event loop that have not ended.",
                       lambda: [({}, len(asyncio.all_tasks(loop)))])
