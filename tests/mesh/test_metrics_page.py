"""The page for Prometheus, and callers that want to hold it up."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from services.mesh import metrics_page
from services.mesh.metrics_page import CONNECTIONS, REQUEST_BYTES, MetricsPage


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsPage]:
    monkeypatch.setattr(metrics_page, "REQUEST_S", 0.5)
    monkeypatch.setattr(metrics_page, "ANSWER_S", 0.5)
    registry = CollectorRegistry()
    Gauge("moshimesh_thing", "A thing.", registry=registry).set(3)
    page = MetricsPage(registry, "127.0.0.1", 0)
    yield page
    page.close()


def connect(page: MetricsPage, receive_bytes: int = 0) -> socket.socket:
    client = socket.socket()
    client.settimeout(10)
    if receive_bytes:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.connect(("127.0.0.1", page.port))
    return client


def scrape(page: MetricsPage, path: str = "/metrics", accept: str = "text/plain", method: str = "GET"
           ) -> tuple[str, str]:
    """Content type and text."""
    request = urllib.request.Request(f"http://127.0.0.1:{page.port}{path}", headers={"Accept": accept}, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def is_closed(client: socket.socket) -> bool:
    """Whether the other end closes; waits for it."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


async def test_a_service_starts_it_within_its_own_event_loop() -> None:
    page = MetricsPage(CollectorRegistry(), "127.0.0.1", 0)
    try:
        with pytest.raises(OSError, match="in use"):
            MetricsPage(CollectorRegistry(), "127.0.0.1", page.port)
    finally:
        page.close()
    assert "metrics-page" not in {thread.name for thread in threading.enumerate()}


def test_it_speaks_both_of_prometheus_languages(page: MetricsPage) -> None:
    kind, text = scrape(page)
    assert kind.startswith("text/plain") and "moshimesh_thing 3.0\n" in text and "# EOF" not in text
    kind, text = scrape(page, accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text") and text.endswith("# EOF\n")


@pytest.mark.parametrize(("path", "method", "code"), [("/favicon.ico", "GET", 404), ("/metrics", "POST", 405)])
def test_nothing_else_is_there(page: MetricsPage, path: str, method: str, code: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        scrape(page, path, method=method)
    assert refused.value.code == code


def test_a_silent_connection_is_closed(page: MetricsPage) -> None:
    with connect(page) as client:
        assert is_closed(client)


def test_a_request_that_drips_is_closed(page: MetricsPage) -> None:
    """As a slow loris sends it: each byte in time, the request never."""
    with connect(page) as client:
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 10:
                client.sendall(b"G")
                time.sleep(0.02)
        assert time.monotonic() - began < 5


def test_a_request_without_end_is_closed(page: MetricsPage) -> None:
    with connect(page) as client:
        try:
            client.sendall(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 4 * REQUEST_BYTES)
        except ConnectionError:
            return
        assert is_closed(client)


def test_many_connections_take_no_threads_and_leave_soon(page: MetricsPage) -> None:
    before = threading.active_count()
    clients = [connect(page) for _ in range(4 * CONNECTIONS)]
    try:
        assert threading.active_count() == before
        assert all(is_closed(client) for client in clients)
    finally:
        for client in clients:
            client.close()
    assert "moshimesh_thing 3.0\n" in scrape(page)[1]


def test_an_answer_that_is_not_read_is_given_up() -> None:
    """An answer larger than what the sockets hold, for a caller that reads nothing of it."""
    registry = CollectorRegistry()
    gauge = Gauge("moshimesh_thing", "A thing.", ["name"], registry=registry)
    for number in range(60_000):
        gauge.labels(f"{number:0100d}").set(number)
    page = MetricsPage(registry, "127.0.0.1", 0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metrics_page, "ANSWER_S", 0.3)
            with connect(page, receive_bytes=4096) as client:
                client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                deadline = time.monotonic() + 20
                while not page._connections and time.monotonic() < deadline:
                    time.sleep(0.01)
                while page._connections and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert not page._connections
    finally:
        page.close()


def test_a_page_that_is_closed_leaves_its_port() -> None:
    first = MetricsPage(CollectorRegistry(), "127.0.0.1", 0)
    first.close()
    second = MetricsPage(CollectorRegistry(), "127.0.0.1", first.port)
    second.close()
