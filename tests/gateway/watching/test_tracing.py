"""Which frames of a call are kept, with made-up frames and no clock but their own."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from moshimesh.audio.v1 import audio_pb2
from moshimesh.tunnel.v1 import tunnel_pb2

from services.gateway.calls.overload import SPARED_ONE_IN
from services.gateway.peers.clocks import PeerClock
from services.gateway.watching.tracing import AROUND_FRAMES, CallTrace
from services.mesh.recorder import GAP_NANOS
from services.mesh.telemetry import FinishedSpan, FrameTracer
from tests import jaeger

MS = 1_000_000
FRAME = 80 * MS
NEVER = 10**9
REMOTE = (audio_pb2.HOP_CODEC_ENCODE, audio_pb2.HOP_LM_STEP, audio_pb2.HOP_CODEC_DECODE)


class Spans:
    """Where the spans go."""

    def __init__(self) -> None:
        self.spans: list[FinishedSpan] = []

    def on_end(self, span: FinishedSpan) -> None:
        self.spans.append(span)

    def shutdown(self) -> None:
        pass

    def kept(self) -> dict[object, object]:
        """Why each frame was kept, by its number; none is kept twice."""
        frames = [span.attributes for span in self.spans if span.name == "frame"]
        kept = {frame["moshimesh.sequence"]: frame["moshimesh.kept_because"] for frame in frames}
        assert len(kept) == len(frames)
        return kept


class FakeReplica:
    """Answers as a replica's tunnel and clock would; remembers what it was asked to keep."""

    address = "codec:50051"

    def __init__(self, alive: bool = True) -> None:
        self.asked: list[tunnel_pb2.Keep] = []
        self.alive, self.clock, self.tunnel = alive, PeerClock(), self
        self.stream: FakeReplica | None = self
        self.lost: list[Callable[[], None]] = []

    def keep(self, keep: tunnel_pb2.Keep, lost: Callable[[], None]) -> None:
        self.asked.append(keep)
        self.lost.append(lost)
        if not self.alive:
            lost()


class Caller:
    """A call whose frames the test times."""

    def __init__(self, one_in: int = NEVER, live: bool = True, enabled: bool = True, sparing: bool = False) -> None:
        self.out = Spans()
        self.trace = CallTrace(FrameTracer(self.out if enabled else None), "a session", "", one_in, "acme",
                               lambda: sparing)
        self.trace.opened("a session", "a model", FRAME if live else None)
        self.replicas: list[Any] = [FakeReplica(), FakeReplica(), FakeReplica()]
        for hop, replica in zip(REMOTE, self.replicas, strict=True):
            self.trace.served_by(hop, replica, 0)
        self.in_mesh: dict[int, audio_pb2.FrameContext] = {}

    def begin(self, sequence: int) -> None:
        at = 10**18 + sequence * FRAME
        context = audio_pb2.FrameContext(sequence=sequence, capture_unix_nanos=at,
                                         traceparent=self.trace.begin(sequence))
        context.hops.add(hop=audio_pb2.HOP_GATEWAY_INGEST, received_unix_nanos=at, started_unix_nanos=at,
                         finished_unix_nanos=at)
        self.in_mesh[sequence] = context

    def end(self, sequence: int, took_ms: int = 40, answered: bool = True) -> Any:
        """The frame leaves; each hop had a quarter of the time."""
        context = self.in_mesh.pop(sequence)
        at, quarter = context.capture_unix_nanos, took_ms * MS // 4
        for number, hop in enumerate(REMOTE[:None if answered else 2]):
            begin = at + number * quarter
            context.hops.add(hop=hop, received_unix_nanos=begin + MS, started_unix_nanos=begin + 2 * MS,
                             finished_unix_nanos=begin + quarter - MS, sent_unix_nanos=begin,
                             returned_unix_nanos=begin + quarter)
        if answered:
            context.hops.add(hop=audio_pb2.HOP_GATEWAY_EMIT, received_unix_nanos=at + 3 * quarter,
                             started_unix_nanos=at + 3 * quarter, finished_unix_nanos=at + took_ms * MS)
        return self.trace.end(context)

    def talk(self, frames: range, took_ms: int = 40) -> None:
        for sequence in frames:
            self.begin(sequence)
            self.end(sequence, took_ms)


def test_every_frame_has_a_trace_of_its_own_that_is_not_sampled() -> None:
    caller = Caller()
    found = [caller.trace.begin(sequence) for sequence in range(1000)]
    assert all(len(text) == 55 and text.startswith("00-") and text.endswith("-00") for text in found)
    assert len({text[3:35] for text in found}) == len({text[36:52] for text in found}) == 1000
    assert len({text[3:10] for text in found}) == 1000  # what Jaeger shows of them
    assert len({text[28:35] for text in found}) == 1000  # what samplers look at


def test_nothing_is_kept_of_a_call_that_runs_well() -> None:
    caller = Caller()
    caller.talk(range(50))
    assert [span.name for span in caller.out.spans] == ["session.open"]
    assert all(not replica.asked for replica in caller.replicas)


def test_a_session_can_be_found_from_its_start() -> None:
    """A frame links to its session's span, which comes when the call ends: until then its trace must not be empty."""
    caller = Caller(one_in=1)
    (opened,) = caller.out.spans
    assert opened.attributes == {"moshimesh.session": "a session", "moshimesh.model_id": "a model",
                                 "moshimesh.key_id": "acme"}
    caller.talk(range(1))
    caller.trace.close()
    (frame,) = (span for span in caller.out.spans if span.name == "frame")
    session = caller.out.spans[-1]
    assert frame.links == (session.context,) and opened.parent == session.context
    assert opened.context.trace_id == session.context.trace_id and session.start == opened.start


def test_one_in_so_many_is_kept() -> None:
    caller = Caller(one_in=10)
    caller.talk(range(100))
    kept = caller.out.kept()
    assert set(kept.values()) == {"sampled"} and len(kept) == 10
    assert len({int(str(sequence)) % 10 for sequence in kept}) == 1


def test_a_late_frame_is_kept_and_no_other() -> None:
    caller = Caller()
    caller.talk(range(10))
    caller.talk(range(10, 11), took_ms=81)
    caller.talk(range(11, 20), took_ms=80)
    assert caller.out.kept() == {10: "deadline"}
    (frame,) = (span for span in caller.out.spans if span.name == "frame")
    assert frame.attributes["moshimesh.deadline_slack_ms"] == -1
    assert frame.end - frame.start == 81 * MS
    assert [keep.hop for replica in caller.replicas for keep in replica.asked] == list(REMOTE)


def test_a_file_has_no_deadline() -> None:
    caller = Caller(live=False)
    caller.talk(range(10), took_ms=5000)
    caller.trace.event("failover")
    assert caller.out.kept() == {}


@pytest.mark.parametrize("event", ["failover", "drained"])
def test_the_frames_around_an_event_are_kept(event: str) -> None:
    caller = Caller()
    caller.talk(range(50))
    for sequence in range(50, 54):  # in the mesh while it happens
        caller.begin(sequence)
    caller.trace.event(event)
    for sequence in range(50, 54):
        caller.end(sequence)
    caller.talk(range(54, 100))
    assert caller.out.kept() == dict.fromkeys(range(50 - AROUND_FRAMES, 54 + AROUND_FRAMES), "event")
    caller.trace.close()
    assert [name for name, _, _ in caller.out.spans[-1].events] == [event]


def test_an_event_keeps_none_of_the_frames_before_twice() -> None:
    caller = Caller()
    caller.talk(range(10))
    caller.talk(range(10, 12), took_ms=100)
    caller.talk(range(12, 14))
    caller.trace.event("failover")
    caller.trace.event("failover")
    caller.trace.close()  # before another frame has left
    assert caller.out.kept() == dict.fromkeys(range(8, 14), "event") | {10: "deadline", 11: "deadline"}


def test_skipped_frames_are_an_event() -> None:
    caller = Caller()
    caller.talk(range(30))
    caller.talk(range(37, 60))
    assert caller.out.kept() == dict.fromkeys([*range(30 - AROUND_FRAMES, 30), *range(37, 38 + AROUND_FRAMES)], "event")
    caller.trace.close()
    ((name, _, attributes),) = caller.out.spans[-1].events
    assert (name, attributes) == ("skipped", {"moshimesh.frames": 7})


def test_a_resumed_call_keeps_what_follows_the_cut_and_not_what_is_repeated() -> None:
    caller = Caller()
    caller.trace.resumed(70)
    for sequence in range(6, 70):
        caller.begin(sequence)
        caller.end(sequence, took_ms=400, answered=False)
    caller.talk(range(70, 90))
    assert caller.out.kept() == dict.fromkeys(range(70, 71 + AROUND_FRAMES), "event")


def test_a_frame_without_an_answer_ends_where_it_came_back() -> None:
    caller = Caller(one_in=1)
    caller.begin(0)
    caller.end(0, took_ms=400, answered=False)
    assert caller.out.kept() == {0: "sampled"}
    (frame,) = (span for span in caller.out.spans if span.name == "frame")
    assert frame.end - frame.start == 200 * MS and "moshimesh.deadline_slack_ms" not in frame.attributes


def test_each_hop_is_asked_where_the_frame_was_answered() -> None:
    caller = Caller()
    later: Any = FakeReplica()
    caller.talk(range(10))
    caller.begin(10)
    caller.begin(11)
    caller.trace.served_by(audio_pb2.HOP_LM_STEP, later, 11)
    caller.end(10, took_ms=100)
    caller.end(11, took_ms=100)
    assert [keep.sequence for keep in caller.replicas[1].asked] == [10]
    assert [keep.sequence for keep in later.asked] == [11]


def test_the_gateway_tells_what_a_lost_replica_can_not() -> None:
    caller = Caller()
    caller.replicas[1].alive = False
    caller.talk(range(1), took_ms=100)
    spans = {span.name: span for span in caller.out.spans}
    assert {"lm.step", "lm.step.transit", "lm.step.queue", "lm.step.compute"} <= set(spans)
    assert "codec.encode" not in spans
    lost = spans["lm.step"]
    assert lost.attributes["server.address"] == "codec:50051"
    begin = 10**18
    assert (lost.start - begin, lost.end - begin) == (24 * MS, 49 * MS - GAP_NANOS)


def test_the_gateway_tells_what_a_replica_was_asked_for_and_could_not_send() -> None:
    caller = Caller()
    caller.talk(range(1), took_ms=100)
    assert not any(span.name == "lm.step" for span in caller.out.spans)
    caller.replicas[1].lost[0]()  # it is killed before its next batch
    assert {"lm.step", "lm.step.transit", "lm.step.queue", "lm.step.compute"} <= {s.name for s in caller.out.spans}


def test_a_replica_that_came_back_is_not_asked_for_what_it_has_forgotten() -> None:
    caller = Caller()
    caller.begin(0)
    gone, caller.replicas[1].stream = caller.replicas[1], FakeReplica()
    gone.alive = False
    caller.end(0, took_ms=100)
    assert not caller.replicas[1].stream.asked and "lm.step" in {span.name for span in caller.out.spans}


def hops(caller: Caller, context: audio_pb2.FrameContext, parts: Sequence[tuple[int, int, int]]) -> None:
    """Send a frame on: how long it was on the way to, waited for, and was in each hop, in nanoseconds."""
    at = context.capture_unix_nanos
    for hop, (transit, queue, compute) in zip((*REMOTE, audio_pb2.HOP_GATEWAY_EMIT), parts, strict=True):
        remote = hop in REMOTE
        context.hops.add(hop=hop, received_unix_nanos=at + transit, started_unix_nanos=at + transit + queue,
                         finished_unix_nanos=at + transit + queue + compute, sent_unix_nanos=at * remote,
                         returned_unix_nanos=(at + transit + queue + compute) * remote)
        at += transit + queue + compute
    caller.trace.end(context)


def test_the_root_names_the_cause() -> None:
    caller = Caller(one_in=1)
    caller.begin(0)
    hops(caller, caller.in_mesh[0], [(MS, MS, 30 * MS), (2 * MS, 90 * MS, 5 * MS), (MS, MS, 40 * MS), (MS, 0, 5000)])
    (frame,) = (span.attributes for span in caller.out.spans if span.name == "frame")
    assert (frame["moshimesh.slowest_hop"], frame["moshimesh.slowest_part"]) == ("lm.step", "queue")
    assert frame["moshimesh.slowest_part_ms"] == 90


def test_jaeger_draws_its_critical_path_through_the_longest_hop_and_part() -> None:
    caller, draw = Caller(), random.Random(1)
    for replica in caller.replicas:
        replica.alive = False  # so that the gateway tells everything
    for sequence in range(240):
        caller.begin(sequence)
        context = caller.in_mesh.pop(sequence)
        context.capture_unix_nanos += draw.randrange(1000)
        context.hops[0].received_unix_nanos = context.capture_unix_nanos - draw.randrange(3_000, 2 * MS)
        context.hops[0].started_unix_nanos = context.capture_unix_nanos - draw.randrange(3_000)
        context.hops[0].finished_unix_nanos = context.capture_unix_nanos
        # Each part may be empty or a few microseconds long; nearly all frames are late.
        hops(caller, context, [*((int(draw.expovariate(1) * 8 * MS) + 500, draw.choice((0, 1, 1500, 20 * MS)),
                                  int(draw.expovariate(1) * 20 * MS)) for _ in REMOTE), (30_000, 0, 3_500)])
    traces: dict[int, list[FinishedSpan]] = defaultdict(list)
    for span in caller.out.spans:
        traces[span.context.trace_id].append(span)
    late = [spans for spans in traces.values() if any(span.name == "frame" for span in spans)]
    assert len(late) > 100
    for spans in late:
        jaeger.check(jaeger.tree((span.name, span.context.span_id, span.parent and span.parent.span_id, span.start,
                                  span.end) for span in spans))


def test_no_estimate_of_a_clock_may_put_a_hop_outside_of_its_own_way() -> None:
    caller = Caller()
    clock = caller.replicas[0].clock
    clock.add(0, 5 * MS, 6 * MS, 2 * MS)  # 4 to 5 ms ahead, it seems; the frame below allows for 1 ms
    caller.talk(range(1), took_ms=100)
    assert caller.replicas[0].asked[0].clock_offset_nanos == MS


def test_without_an_endpoint_nothing_is_done() -> None:
    caller = Caller(one_in=1, enabled=False)
    assert caller.trace.begin(0) == ""
    caller.talk(range(1), took_ms=1000)
    caller.trace.event("failover")
    caller.trace.close()
    assert caller.out.spans == [] and not any(replica.asked for replica in caller.replicas)


def test_of_an_overloaded_gateway_one_late_frame_in_so_many_is_kept() -> None:
    caller = Caller(sparing=True)
    caller.talk(range(10 * SPARED_ONE_IN), took_ms=200)
    caller.trace.event("skipped")
    caller.talk(range(10 * SPARED_ONE_IN, 11 * SPARED_ONE_IN))
    frames = [span for span in caller.out.spans if span.name == "frame"]
    assert len(frames) == 10 and {span.attributes["moshimesh.kept_because"] for span in frames} == {"deadline"}
