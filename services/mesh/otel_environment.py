"""OpenTelemetry's environment variables, read as its specification says.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/: an empty variable counts as unset,
only "true", in any case, is true, and a number that can't be read is ignored. A service never fails to start over one
of them: each that can't be used costs one warning line, and its default holds. Values are not logged, since some are
secrets.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from pathlib import Path
from urllib.parse import unquote

log = logging.getLogger(__name__)

_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")  # of gRPC metadata; another one would fail every export


@functools.cache
def warn(name: str, problem: str) -> None:
    """Say once what is wrong with a variable."""
    log.warning("%s %s", name, problem)


def text(name: str) -> str:
    """A variable's value, stripped; empty when it is unset."""
    return os.environ.get(name, "").strip()


def is_true(name: str) -> bool:
    """A boolean variable."""
    value = text(name).lower()
    if value not in ("", "true", "false"):
        warn(name, "is neither true nor false, so it counts as false")
    return value == "true"


def milliseconds(name: str, default: float) -> float:
    """A duration, in whole milliseconds and more than 0."""
    value = text(name)
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and 0 < int(value) < 1 << 31):
        warn(name, f"must be a whole number of milliseconds, more than 0 and without a unit; {default:g} is used")
        return default
    return float(value)


def disabled() -> bool:
    """Whether nothing is to be recorded or sent."""
    if is_true("OTEL_SDK_DISABLED"):
        warn("OTEL_SDK_DISABLED", "is true: no traces, no metrics, and nothing at --metrics-port")
        return True
    return False


def otlp_endpoint(flag: str, signal: str) -> str:
    """Where a signal ("traces" or "metrics") is sent; empty: nowhere. The service's own flag beats the variables."""
    exporter = text(f"OTEL_{signal.upper()}_EXPORTER").lower()
    if disabled() or exporter == "none":
        return ""
    endpoint = flag or otlp_setting(signal, "ENDPOINT")
    protocol = otlp_setting(signal, "PROTOCOL")
    if endpoint and protocol not in ("", "grpc"):
        warn("OTEL_EXPORTER_OTLP_PROTOCOL", f"names {protocol!r}, but OTLP is only spoken over gRPC here; the endpoint "
             "must be a port for gRPC, usually 4317")
    return endpoint


def otlp_setting(signal: str, name: str) -> str:
    """An option of the OTLP exporter: the signal's own if it is set, else the one for all signals."""
    return text(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}") or text(f"OTEL_EXPORTER_OTLP_{name}")


def otlp_timeout_ms(signal: str, default: float) -> float:
    """How long one export may take."""
    return milliseconds(f"OTEL_EXPORTER_OTLP_{signal.upper()}_TIMEOUT",
                        milliseconds("OTEL_EXPORTER_OTLP_TIMEOUT", default))


def otlp_headers(signal: str) -> tuple[tuple[str, str], ...]:
    """gRPC metadata for every export, from pairs such as `api-key=secret,tenant=a%20b`."""
    headers = []
    for pair in otlp_setting(signal, "HEADERS").split(","):
        key, found, value = (part.strip() for part in pair.partition("="))
        key, value = unquote(key).lower(), unquote(value)
        if found and _HEADER_NAME.fullmatch(key) and value.isascii() and value.isprintable():
            headers.append((key, value))
        elif pair.strip():
            warn("OTEL_EXPORTER_OTLP_HEADERS", "has a pair that is not key=value in printable ASCII; it is left out")
    return tuple(headers)


def otlp_file(signal: str, name: str) -> bytes | None:
    """The content of a file that an option names; None when it names none, or one that can't be read."""
    path = otlp_setting(signal, name)
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        warn(f"OTEL_EXPORTER_OTLP_{name}", f"names a file that can't be read ({error.strerror}); it is ignored")
        return None
