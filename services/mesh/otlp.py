"""OTLP over gRPC: a channel to a collector, and attributes in its wire format.

Spans and metrics go through the stubs that are generated from OTLP's own protocol files. The SDK's exporters offer no
public way to hand over messages that are made already, nor to hear what a collector has refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from services.mesh import otel_environment

LEAST_INT, MOST_INT = -(1 << 63), (1 << 63) - 1  # int_value is an int64
GRPC_PORT = 4317  # https://opentelemetry.io/docs/specs/otlp/#otlpgrpc-default-port
# A collector that comes back is found again within seconds; gRPC's own back-off grows to two minutes.
CHANNEL_OPTIONS = [("grpc.initial_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 5_000)]


def open_channel(endpoint: str, signal: str) -> grpc.Channel:
    """A channel to an OTLP endpoint, by https://opentelemetry.io/docs/specs/otel/protocol/exporter/.

    `endpoint` is a URL (http: without TLS, https: with TLS) or any target of gRPC's, for which
    OTEL_EXPORTER_OTLP_INSECURE decides.
    """
    scheme, separator, rest = endpoint.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        insecure, target = scheme.lower() == "http", rest.split("/")[0]
        if insecure and _has_no_port(target):
            target = f"{target}:{GRPC_PORT}"
    else:
        insecure, target = otel_environment.otlp_setting(signal, "INSECURE").lower() == "true", endpoint
    compression = otel_environment.otlp_setting(signal, "COMPRESSION").lower()
    if compression not in ("", "none", "gzip"):
        otel_environment.warn("OTEL_EXPORTER_OTLP_COMPRESSION", "must be gzip or none; nothing is compressed")
    how = grpc.Compression.Gzip if compression == "gzip" else grpc.Compression.NoCompression
    if insecure:
        return grpc.insecure_channel(target, options=CHANNEL_OPTIONS, compression=how)
    credentials = grpc.ssl_channel_credentials(*(otel_environment.otlp_file(signal, name) for name in (
        "CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")))
    return grpc.secure_channel(target, credentials, options=CHANNEL_OPTIONS, compression=how)


def wire_attributes(attributes: Mapping[str, Any]) -> Iterator[KeyValue]:
    """Attributes as OTLP has them."""
    for key, value in attributes.items():
        yield KeyValue(key=key, value=wire_value(value))


def wire_value(value: Any) -> AnyValue:
    """A string, boolean, number, None, or a sequence of such, as OTLP has it. Integers are clamped to 64 bits."""
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        try:
            return AnyValue(int_value=value)
        except ValueError:  # a caller chooses the numbers of its frames, and those are unsigned
            return AnyValue(int_value=min(max(value, LEAST_INT), MOST_INT))
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if value is None:
        return AnyValue()
    return AnyValue(array_value=ArrayValue(values=[wire_value(item) for item in value]))


def _has_no_port(target: str) -> bool:
    try:
        return urlsplit(f"//{target}").port is None
    except ValueError:  # gRPC will say what is wrong with it
        return False
