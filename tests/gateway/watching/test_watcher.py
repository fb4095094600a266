"""What a call's observer makes of what the path tells: traces and metrics hear the same story."""

from __future__ import annotations

from typing import Any

import pytest
from moshimesh.audio.v1 import audio_pb2

from services.gateway.calls.callers import Caller, New, Opening, Resumed
from services.gateway.calls.overload import Overload
from services.gateway.path.observer import Change
from services.gateway.watching.metering import GatewayMetrics
from services.gateway.watching.recent import RecentFrames
from services.gateway.watching.watcher import watcher
from services.mesh.metrics import Metrics
from services.mesh.telemetry import FrameTracer
from tests.gateway.watching.test_metering import MS, context, seconds
from tests.gateway.watching.test_tracing import Spans

LIVE = Opening(New())


CALLER = Caller("acme", "127.0.0.1", "grpc")


class Watched:
    """A gateway's watcher, its spans and its metrics."""

    def __init__(self) -> None:
        self.spans, self.metrics = Spans(), Metrics()
        self.metrics.enabled = True
        self.gateway = GatewayMetrics(self.metrics)
        self.recent, self.overload = RecentFrames(), Overload()
        self.watch = watcher(FrameTracer(self.spans), self.gateway, self.recent, self.overload, trace_one_in=1)

    def call(self, opening: Opening = LIVE) -> Any:
        observer = self.watch("a call", CALLER, opening)
        observer.opened("a session", "a model", 80 * MS)
        return observer


def frame(observer: Any, sequence: int, answered: bool = True) -> audio_pb2.FrameContext:
    sent = context(sequence)
    sent.traceparent = observer.entered(sequence)
    sent.capture_unix_nanos = sent.hops[0].received_unix_nanos
    if not answered:
        del sent.hops[2:]
    return sent


def test_an_answered_frame_is_measured_and_traced() -> None:
    watched = Watched()
    observer = watched.call()
    observer.left(frame(observer, 0))
    assert watched.gateway.frames == {True: 1, False: 0}
    assert watched.recent.frames == 1
    assert watched.spans.kept() == {0: "sampled"}
    (kept,) = {exemplar[2].trace_id for series in seconds(watched.metrics, "moshimesh.frame.duration").values()
               for exemplar in series.exemplars.values()}
    assert kept == next(span.context.trace_id for span in watched.spans.spans if span.name == "frame")


def test_a_frame_without_an_answer_is_not_measured() -> None:
    watched = Watched()
    observer = watched.call()
    observer.left(frame(observer, 0, answered=False))
    assert watched.gateway.frames == {True: 0, False: 0}


def test_a_move_is_counted_and_in_the_session_s_span() -> None:
    watched = Watched()
    observer = watched.call()
    observer.moved("lm", Change.FAILED_OVER)
    observer.ended("completed")
    assert sum(count for _, count in watched.gateway.failovers.read()) == 1
    session = [span for span in watched.spans.spans if span.name == "session"][-1]
    assert "failover" in [name for name, *_ in session.events] and not session.error


@pytest.mark.parametrize(("reason", "is_error"), [("completed", False), ("cancelled", False), ("IDLE_CALLER", True)])
def test_how_a_call_ended_is_said_everywhere(reason: str, is_error: bool) -> None:
    watched = Watched()
    observer = watched.call()
    assert watched.gateway.live == 1
    observer.ended(reason)
    assert watched.gateway.live == 0
    assert {attributes["reason"] for attributes, count in watched.gateway.ended.read() if count} == {reason}
    session = [span for span in watched.spans.spans if span.name == "session"][-1]
    assert bool(session.error) == is_error


def test_an_offline_call_has_no_deadline() -> None:
    watched = Watched()
    observer = watched.call(Opening(Resumed("a handle"), live=False))
    observer.heard(0.08)
    observer.left(frame(observer, 0))
    assert watched.gateway.frames == {True: 0, False: 1} and watched.gateway.resumes == 1


def test_a_call_that_never_opened_ends_too() -> None:
    watched = Watched()
    watched.watch("a call", CALLER, LIVE).ended("TOO_MANY_CALLS")
    assert watched.gateway.live == 0
    assert {attributes["reason"]: count for attributes, count in watched.gateway.ended.read()}["TOO_MANY_CALLS"] == 1
