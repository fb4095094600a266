"""`moshimesh top`, as a process, against an HTTP server that says what a gateway says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.client.test_cli import _moshimesh

HOP = {"p50_ms": 5.2, "p99_ms": 9.9}
STATUS: dict[str, Any] = {
    "gateway": {"version": "1.2.3", "uptime_s": 3725, "draining": False},
    "models": [{"model": "talker", "slots_total": 8, "slots_free": 5, "waiting": 2}],
    "calls": {"held": 3, "waiting": 2},
    "replicas": [
        {"role": "codec", "address": "10.0.0.1:1", "answers": True, "age_s": 0.4, "serves": "mimi", "draining": True,
         "slots_total": 8, "slots_free": 5},
        {"role": "lm", "address": "10.0.0.2:1", "answers": False, "age_s": None, "problem": "UNAVAILABLE"}],
    "frames": {"window_s": 60, "answered": 750, "late": 1, "whole": {"p50_ms": None, "p99_ms": None},
               "hops": {"lm.step": HOP}},
    "late": [{"at_unix_ms": 1_800_000_000_000, "sequence": 42, "trace_id": "ab" * 16, "whole_ms": 101.5,
              "slowest_hop": "lm.step", "slowest_ms": 90.0}],
}


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == "Bearer mm_secret"
        body = STATUS if allowed else {"error": {"message": "this mesh asks who calls", "reason": "NO_CREDENTIAL"}}
        self.send_response(200 if allowed and self.path == "/api/status" else 401)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_top_shows_replicas_room_frames_and_the_line(url: str) -> None:
    code, out, _ = await _moshimesh("top", "--once", "--url", url, MOSHIMESH_KEY="mm_secret")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert lines[0] == "moshi-mesh 1.2.3 up 1 h 2 min taking calls 3 calls, 2 in line"
    assert "talker 5 of 8 2" in lines
    assert "codec 10.0.0.1:1 draining 5 of 8 0.4 s ago mimi" in lines
    assert "lm 10.0.0.2:1 no answer: UNAVAILABLE - never -" in lines
    assert "750 frames in the last 60 s, 1 late" in lines
    assert "lm.step 5.2 ms 9.9 ms" in lines and "all of it - -" in lines
    assert any(line.endswith(f"42 101.5 ms lm.step 90.0 ms {'ab' * 16}") for line in lines)
    assert "\033" not in out


async def test_top_as_json(url: str) -> None:
    code, out, _ = await _moshimesh("top", "--once", "--json", "--url", url, MOSHIMESH_KEY="mm_secret")
    assert (code, json.loads(out)) == (0, STATUS)


@pytest.mark.parametrize(("key", "address", "complaint"), [
    ("", None, "this mesh asks who calls; give a key with --key-file or MOSHIMESH_KEY"),
    ("", "http://127.0.0.1:1", "nobody answers at http://127.0.0.1:1"),
    ("", "localhost:8000", "--url must be like http://localhost:8000"),
])
async def test_what_goes_wrong_is_one_line(url: str, key: str, address: str | None, complaint: str) -> None:
    code, out, err = await _moshimesh("top", "--once", "--url", address or url, MOSHIMESH_KEY=key)
    assert (code, out) == (1, "")
    assert err.startswith(f"moshimesh: {complaint}") and err.count("\n") == 1
