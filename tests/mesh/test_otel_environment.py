"""OpenTelemetry's variables as its specification reads them; what can't be used costs a line, never a start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import opentelemetry.sdk.environment_variables as known
import pytest

from services.mesh import otel_environment
from services.mesh.config import ServiceConfig
from services.mesh.metrics import Metrics
from services.mesh.telemetry import FrameTracer

ROOT = Path(__file__).resolve().parent.parent.parent
EVERY = sorted({value for value in vars(known).values() if re.fullmatch("OTEL_[A-Z_]+", str(value))})
START = """
import logging, os, sys
logging.basicConfig(level=logging.WARNING, format="%(name)s %(message)s")
from services.mesh.config import ServiceConfig
from services.mesh.metrics import Metrics
from services.mesh.telemetry import FrameTracer
metrics = Metrics.start(ServiceConfig(otlp_endpoint="http://127.0.0.1:9"), "test")
tracer = FrameTracer.export_to("http://127.0.0.1:9", "test")
print("started", metrics.enabled, tracer.enabled)
sys.stdout.flush(), sys.stderr.flush()
os._exit(0)
"""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    otel_environment.warn.cache_clear()
    yield
    otel_environment.warn.cache_clear()


@pytest.mark.parametrize(("value", "wanted", "warned"), [
    ("", 15.0, False), ("500", 500.0, False), (" 500 ", 500.0, False), ("500ms", 15.0, True), ("5s", 15.0, True),
    ("0", 15.0, True), ("-1", 15.0, True), ("1e3", 15.0, True), ("nan", 15.0, True), ("9" * 20, 15.0, True),
    ("٣", 15.0, True)])
def test_durations(value: str, wanted: float, warned: bool, monkeypatch: pytest.MonkeyPatch,
                   caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", value)
    for _ in range(3):
        assert otel_environment.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 15.0) == wanted
    assert len(caplog.messages) == warned
    assert all("OTEL_METRIC_EXPORT_INTERVAL" in message for message in caplog.messages)


@pytest.mark.parametrize(("value", "wanted", "warned"), [
    ("", False, False), ("true", True, False), ("TRUE", True, False), ("False", False, False), ("1", False, True),
    ("yes", False, True)])
def test_booleans(value: str, wanted: bool, warned: bool, monkeypatch: pytest.MonkeyPatch,
                  caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", value)
    assert otel_environment.is_true("OTEL_SDK_DISABLED") is wanted
    assert len(caplog.messages) == warned


@pytest.mark.parametrize(("variables", "flag", "traces", "metrics"), [
    ({}, "", "", ""),
    ({}, "http://flag:1", "http://flag:1", "http://flag:1"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://all:1"}, "", "http://all:1", "http://all:1"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, "", "", ""),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://all:1"}, "http://flag:1", "http://flag:1", "http://flag:1"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://all:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:1"}, "",
     "http://traces:1", "http://all:1"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://all:1", "OTEL_METRICS_EXPORTER": "none"}, "", "http://all:1", ""),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://all:1", "OTEL_SDK_DISABLED": "true"}, "http://flag:1", "", "")])
def test_where_things_go(variables: dict[str, str], flag: str, traces: str, metrics: str,
                         monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert otel_environment.otlp_endpoint(flag, "traces") == traces
    assert otel_environment.otlp_endpoint(flag, "metrics") == metrics


def test_another_protocol_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    assert otel_environment.otlp_endpoint("http://here:4318", "traces") == "http://here:4318"
    assert "'http/protobuf'" in caplog.text and "4317" in caplog.text


def test_a_secret_is_not_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key:hunter2, with space=hunter2,ok=1,x=hunt\ner2")
    assert otel_environment.otlp_headers("traces") == (("ok", "1"),)
    assert len(caplog.messages) == 1 and "hunter2" not in caplog.text


def test_a_disabled_sdk_starts_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    config = ServiceConfig(otlp_endpoint="http://127.0.0.1:9", metrics_port=1)  # nobody may listen there
    assert not Metrics.start(config, "test").enabled
    assert not FrameTracer.export_to(config.otlp_endpoint, "test").enabled
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("value", ["", "12x, s="])
def test_no_variable_prevents_a_start(value: str) -> None:
    """All that the SDK knows of, at once."""
    environment = dict.fromkeys(EVERY, value) | {"OTEL_SDK_DISABLED": "", "OTEL_TRACES_EXPORTER": "",
                                                 "OTEL_METRICS_EXPORTER": ""}
    path = os.pathsep.join([str(ROOT), str(ROOT / "protos" / "python")])
    done = subprocess.run([sys.executable, "-c", START], env={**os.environ, **environment, "PYTHONPATH": path},
                          capture_output=True, text=True, check=False, timeout=60)
    assert "started True True" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("services.")]
    assert len(ours) == len(set(ours)) and bool(ours) == bool(value), done.stderr
