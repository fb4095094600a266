"""Metrics on their way to a collector: what the SDK's reader has gathered, and our own histograms with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.sdk.metrics import export as sdk

from services.mesh import otel_environment
from services.mesh.otlp import open_channel, wire_attributes

log = logging.getLogger(__name__)

PUSH_MS = 10_000.0  # what one push may take; OTEL_METRIC_EXPORT_TIMEOUT and OTEL_EXPORTER_OTLP_TIMEOUT change it


class MetricsPush(sdk.MetricExporter):
    """Pushes over OTLP/gRPC."""

    def __init__(self, endpoint: str, histograms: Callable[[], Iterable[metrics_pb2.Metric]]) -> None:
        """`histograms` gives what the SDK does not know of."""
        super().__init__()
        self._endpoint, self._histograms = endpoint, histograms
        self._channel = open_channel(endpoint, "metrics")
        self._export = MetricsServiceStub(self._channel).Export
        self._headers = otel_environment.otlp_headers("metrics")
        self._timeout_ms = otel_environment.otlp_timeout_ms("metrics", PUSH_MS)
        self._refused = self._warned = False

    def export(self, metrics_data: sdk.MetricsData, timeout_millis: float = PUSH_MS, **kwargs: Any
               ) -> sdk.MetricExportResult:
        """See MetricExporter. One that fails is not tried again: the next one says as much, and more."""
        if self._refused:
            return sdk.MetricExportResult.FAILURE
        request = ExportMetricsServiceRequest(resource_metrics=[metrics_pb2.ResourceMetrics(
            resource=Resource(attributes=wire_attributes(of_process.resource.attributes)),
            scope_metrics=[metrics_pb2.ScopeMetrics(
                scope=InstrumentationScope(name=scope.scope.name), metrics=map(_wire_metric, scope.metrics))
                for scope in of_process.scope_metrics]) for of_process in metrics_data.resource_metrics])
        request.resource_metrics[0].scope_metrics[0].metrics.extend(self._histograms())
        try:
            self._export(request, timeout=min(timeout_millis, self._timeout_ms) / 1000, metadata=self._headers)
        except grpc.RpcError as error:
            self._failed(error)
            return sdk.MetricExportResult.FAILURE
        self._warned = False
        return sdk.MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = PUSH_MS) -> bool:
        """See MetricExporter: nothing waits here."""
        return True

    def shutdown(self, timeout_millis: float = PUSH_MS, **kwargs: Any) -> None:
        """See MetricExporter."""
        self._channel.close()

    def _failed(self, error: Any) -> None:
        """Stop pushing to a collector that takes no metrics, such as Jaeger; of others say once that they fail."""
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            self._refused = True
            log.info("the OTLP endpoint takes no metrics, only traces; they are at --metrics-port")
        elif not self._warned:
            self._warned = True
            log.warning("metrics could not be pushed to %s, which is tried again each time: %s: %s", self._endpoint,
                        error.code().name, error.details())


def _wire_metric(metric: sdk.Metric) -> metrics_pb2.Metric:
    """A counter or gauge as OTLP has it; of the SDK's instruments there are no others here."""
    wire = metrics_pb2.Metric(name=metric.name, description=metric.description or "", unit=metric.unit or "")
    points = wire.gauge.data_points
    if isinstance(metric.data, sdk.Sum):
        wire.sum.aggregation_temporality = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
        wire.sum.is_monotonic = metric.data.is_monotonic
        points = wire.sum.data_points
    for point in metric.data.data_points:
        value: Any = point.value  # type: ignore[union-attr]
        points.add(attributes=wire_attributes(point.attributes or {}), time_unix_nano=point.time_unix_nano,
                   start_time_unix_nano=point.start_time_unix_nano or 0,
                   **({"as_int": value} if isinstance(value, int) else {"as_double": value}))
    return wire
