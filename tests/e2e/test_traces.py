"""The flight recorder against real processes and a real collector: which frames are kept, and what their traces say."""

from __future__ import annotations

import asyncio
import re
import signal
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import grpc
import moshimesh
import numpy as np
import numpy.typing as npt
import pytest
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc

from harness.local_mesh import LocalMesh
from harness.null_mesh import NullMesh
from services.mesh.clock import now_unix_nanos
from services.mesh.telemetry import FinishedSpan, FrameTracer, new_trace
from services.mesh.testhooks import CLOCK_SHIFT_MS, DELAY
from tests.e2e.calls import GREEDY, pieces
from tests.e2e.otlp import HOPS, REMOTE, hanging, receiver, sequences

FRAME_BYTES = 1920 * 2
DEADLINE_MS = 80.0
NEVER = "1000000000"
SENT_S = 0.5  # what is kept last must get to the services before they are stopped


@dataclass
class Live:
    """A live call of silence at the pace of speech, and what came of it."""

    speech: dict[int, moshimesh.Speech] = field(default_factory=dict)
    summary: moshimesh.Summary | None = None

    async def talk(self, target: str, frames: int, act: Callable[[int], Awaitable[None]] | None = None,
                   **options: str) -> None:
        loop = asyncio.get_running_loop()

        async def audio() -> AsyncIterator[bytes]:
            begin = loop.time()
            for sequence in range(frames):
                await asyncio.sleep(max(0.0, begin + sequence * 0.08 - loop.time()))
                if act is not None:
                    await act(sequence)
                yield bytes(FRAME_BYTES)

        async with moshimesh.connect(target) as mesh:
            async for event in mesh.converse(audio(), **options):  # type: ignore[arg-type]
                if isinstance(event, moshimesh.Speech):
                    self.speech[event.sequence] = event
                elif isinstance(event, moshimesh.Summary):
                    self.summary = event

    def latency_ms(self, sequence: int) -> float:
        """From the last sample's arrival at the gateway to its answer's departure."""
        hops = self.speech[sequence].hops
        return (hops[-1].finished_unix_nanos - hops[0].received_unix_nanos) / 1e6

    @property
    def late(self) -> list[int]:
        return [sequence for sequence in self.speech if self.latency_ms(sequence) > DEADLINE_MS]


class LinedMesh(NullMesh):
    """A null mesh that remembers what its processes said, and may set variables of one of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lines: list[str] = []
        self.on_line = lambda name, line: self.lines.append(line)


async def test_a_late_hop_is_found() -> None:
    """Six frames of a call are held up, each in another hop, in its queue or in its step."""
    where = [(hop, part) for hop in REMOTE for part in ("queue", "compute")]
    delays = {31 + 5 * n: place for n, place in enumerate(where)}  # by tick; each comes once in 60
    batchers = {"codec.encode": "encode", "lm.step": "lm", "codec.decode": "decode"}
    asked = ",".join(f"{batchers[hop]}:{part}:{tick}:100" for tick, (hop, part) in delays.items())
    async with receiver() as collected, LinedMesh(slots=4, environment={
            "MOSHIMESH_OTLP_ENDPOINT": collected.endpoint, "MOSHIMESH_TRACE_ONE_IN": NEVER, DELAY: asked}) as mesh:
        live = Live()
        await live.talk(mesh.target, 60)
        await asyncio.sleep(SENT_S)
    held_up = {int(tick): float(ms) for line in mesh.lines
               for tick, ms in re.findall(r"delayed \w+ of tick (\d+) of \w+ by ([\d.]+) ms", line)}
    assert set(held_up) == set(delays)
    frames = collected.frames()
    assert sequences(frames) == live.late  # and so no neighbour that was in time
    assert len(frames) < 40 and {frame.because for frame in frames} == {"deadline"}

    differences = []
    for tick, (hop, part) in delays.items():
        # The decoder's first tick is the second frame's: the delay line had no answer for the first one.
        (frame,) = (frame for frame in frames
                    if hop in frame.hops and frame.hops[hop].attributes["moshimesh.tick"] == tick)
        frame.check()
        assert max(frame.hops.values(), key=lambda span: span.ms).name == hop
        assert max(frame.children(frame.hops[hop]), key=lambda span: span.ms).name == f"{hop}.{part}"
        differences.append(frame.part(hop, part).ms - held_up[tick])
        for answered in live.speech[int(str(frame.sequence))].hops:
            if answered.hop in REMOTE:
                assert frame.part(answered.hop, "queue").ms == pytest.approx(answered.queue_ms)
                assert frame.part(answered.hop, "compute").ms == pytest.approx(answered.compute_ms)
        slack_ms = frame.root.attributes["moshimesh.deadline_slack_ms"]
        assert slack_ms == pytest.approx(DEADLINE_MS - frame.root.ms) and frame.root.ms > DEADLINE_MS
    assert min(differences) > 0 and statistics.median(differences) < 2, differences


class ShiftedMesh(LocalMesh):
    """A mesh whose codec has another idea of the time than its lm, and the gateway a third one."""

    async def start_process(self, name: str, command: Sequence[str]) -> None:
        shifts = {"codec": "500", "lm": "-3000"}
        everybody = self.environment
        self.environment = everybody | ({CLOCK_SHIFT_MS: shifts[name]} if name in shifts else {})
        try:
            await super().start_process(name, command)
        finally:
            self.environment = everybody


async def test_a_trace_spans_the_callers_and_three_services(checkpoint: str, speech: npt.NDArray[np.float32]) -> None:
    async with receiver() as collected:
        mine = FrameTracer.export_to(collected.endpoint, "caller")
        span, began = new_trace(), now_unix_nanos()
        async with ShiftedMesh(checkpoint, slots=2, environment={
                "MOSHIMESH_OTLP_ENDPOINT": collected.endpoint, "MOSHIMESH_TRACE_ONE_IN": "1",
                "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=here,k8s.node.name=there"}) as mesh:
            answers = []
            async with moshimesh.connect(mesh.target) as client:
                async for event in client.converse(
                        pieces(speech[:48_000], 80), encoding="f32", pacing="offline",
                        traceparent=f"00-{span.trace_id:032x}-{span.span_id:016x}-01", **GREEDY):
                    if isinstance(event, moshimesh.Ready):
                        ready = event
                    elif isinstance(event, moshimesh.Speech):
                        answers.append(event)
            mine.send(FinishedSpan("call", span, None, began, now_unix_nanos(), {}))
            await asyncio.sleep(SENT_S)
        await asyncio.to_thread(mine.close)

    (session,), (call,) = collected.named("session"), collected.named("call")
    assert (session.trace_id, session.parent_id) == (call.trace_id, call.span_id)
    assert call.start <= session.start <= session.end <= call.end
    assert [event.name for event in session.events] == ["ended"]
    assert {span.service for span in collected.spans} == {"caller", "gateway", "codec", "lm"}
    for span_ in collected.spans:
        if span_.service != "caller":
            assert {"service.instance.id", "process.pid"} <= set(span_.resource)
            assert (span_.resource["k8s.pod.name"], span_.resource["k8s.node.name"]) == ("here", "there")

    frames = collected.frames()
    assert len(frames) == len(answers) + 1  # the delay line's frame has no answer, but a trace
    ticks = {(span_.trace_id, span_.span_id): span_ for span_ in collected.spans
             if span_.name.endswith(".tick")}
    for frame in frames:
        frame.check()
        assert session.start <= frame.root.start and frame.root.end <= session.end
        assert frame.root.links[0][1] == session.span_id
        assert frame.because == "sampled"
        expected = set(HOPS) if frame.sequence else set(HOPS) - {"codec.decode", "gateway.emit"}
        assert set(frame.hops) == expected
        for name, hop in frame.hops.items():
            if name not in REMOTE:
                continue
            said = hop.attributes
            assert said["moshimesh.session"] == ready.session_id
            assert (said["moshimesh.model_id"] == ready.model_id) == (hop.service == "lm")  # else the codec's own
            assert (said["moshimesh.sequence"], said["moshimesh.slot"]) == (frame.sequence, 0)
            assert (said["moshimesh.batch_size"], said["moshimesh.batch_fill"]) == (1, 0.5)
            shift = {"codec": 500, "lm": -3000}[hop.service]
            assert said["moshimesh.clock_offset_ms"] == pytest.approx(shift, abs=20)
            tick = ticks[hop.links[0]]
            compute = frame.part(name, "compute")
            assert (tick.name, tick.start, tick.end) == (f"{name}.tick", compute.start, compute.end)
            assert tick.attributes["moshimesh.rows"] == [0]


async def test_every_miss_under_overload_is_kept() -> None:
    one_in = 10
    async with receiver() as collected, NullMesh(slots=8, environment={
            "MOSHIMESH_OTLP_ENDPOINT": collected.endpoint, "MOSHIMESH_TRACE_ONE_IN": str(one_in),
            DELAY: "lm:compute:9:90,decode:queue:13:85"}) as mesh:
        calls = [Live() for _ in range(4)]
        await asyncio.gather(*(live.talk(mesh.target, 50) for live in calls))
        await asyncio.sleep(SENT_S)
    assert all(live.summary is not None and live.summary.frames_skipped == 0 for live in calls)
    late = sum(len(live.late) for live in calls)
    frames = collected.frames()
    assert late > 20
    assert sum(frame.because == "deadline" for frame in frames) == late
    others = sum(len(live.speech) - len(live.late) for live in calls)
    assert {frame.because for frame in frames} == {"deadline", "sampled"}
    # At most one in so many of each call, with the frame that the delay line leaves unanswered.
    assert sum(frame.because == "sampled" for frame in frames) <= others / one_in + len(calls)
    for frame in frames:
        frame.check()
        if frame.because == "deadline":
            assert set(frame.hops) == set(HOPS)


@pytest.mark.parametrize(("number", "event"), [(signal.SIGKILL, "failover"), (signal.SIGTERM, "drained")])
async def test_the_frames_around_a_move_are_kept(number: signal.Signals, event: str) -> None:
    async with receiver() as collected, NullMesh(slots=4, replicas=2, environment={
            "MOSHIMESH_OTLP_ENDPOINT": collected.endpoint, "MOSHIMESH_TRACE_ONE_IN": NEVER}) as mesh:
        live = Live()

        async def stop(sequence: int) -> None:
            if sequence == 30:
                mesh.processes[await stepper(mesh)].send(number)

        await live.talk(mesh.target, 60, stop)
        await asyncio.sleep(SENT_S)
    (session,) = collected.named("session")
    assert event in {event.name for event in session.events}
    frames = [frame for frame in collected.frames() if frame.because in ("event", "deadline")]
    kept = sequences(frames)
    assert set(range(26, 36)) <= set(kept) and min(kept) > 15 and max(kept) < 50, kept  # type: ignore[type-var]
    for frame in frames:
        assert frame.root.links[0][1] == session.span_id
        # What the lost replica had done of a frame, the gateway tells from what has come with the frame. A null process
        # is a codec, too, whose tunnels end with its lm's, without a drain of their own: it may be asked too late.
        needed = set(HOPS) if event == "failover" else set(HOPS) - {"codec.encode", "codec.decode"}
        assert needed <= set(frame.hops), (frame.sequence, set(frame.hops))


async def test_the_frames_behind_a_cut_are_kept() -> None:
    async with receiver() as collected, NullMesh(slots=4, replicas=2, environment={
            "MOSHIMESH_OTLP_ENDPOINT": collected.endpoint, "MOSHIMESH_TRACE_ONE_IN": NEVER}) as mesh:
        live = Live()

        async def stop(sequence: int) -> None:
            if sequence == 30:
                mesh.processes["gateway"].send(signal.SIGTERM)

        await live.talk(mesh.addresses("gateway"), 60, stop)
        await asyncio.sleep(SENT_S)
    before, after = sorted(collected.named("session"), key=lambda session: session.start)
    assert before.attributes["moshimesh.session"] == after.attributes["moshimesh.session"]
    (resumed,) = (event for event in after.events if event.name == "resumed")
    first = resumed.attributes["moshimesh.sequence"]
    assert 25 < first < 40
    kept = {frame.sequence for frame in collected.frames() if frame.root.links[0][1] == after.span_id}
    assert set(range(first, first + 5)) <= kept and min(kept) >= first  # type: ignore[type-var]


async def stepper(mesh: NullMesh) -> str:
    """The process whose lm holds the call."""
    for name, lm in (("codec", "lm"), ("codec-2", "lm-2")):
        async with grpc.aio.insecure_channel(f"localhost:{mesh.ports[lm]}") as channel:
            info = await lm_pb2_grpc.LmServiceStub(channel).GetInfo(lm_pb2.GetInfoRequest())
        if info.slots_free < info.slots_total:
            return name
    raise AssertionError("nobody holds the call")


@pytest.mark.parametrize("collector", ["hangs", "is gone"])
async def test_a_collector_that_does_not_answer_costs_no_audio(collector: str) -> None:
    async with hanging() as endpoint:
        if collector == "is gone":
            endpoint = "http://127.0.0.1:9"
        async with NullMesh(slots=8, environment={
                "MOSHIMESH_OTLP_ENDPOINT": endpoint, "MOSHIMESH_TRACE_ONE_IN": "1"}) as mesh:
            calls = [Live() for _ in range(4)]
            await asyncio.gather(*(live.talk(mesh.target, 75) for live in calls))
            loop = asyncio.get_running_loop()
            began = loop.time()
        assert loop.time() - began < 20  # nor does it keep the processes from ending
    for live in calls:
        assert live.summary is not None and live.summary.frames_skipped == 0
        assert len(live.speech) == 75
        assert all(a + 1 == b for a, b in pairwise(sorted(live.speech)))
    assert statistics.median(live.latency_ms(sequence) for live in calls for sequence in live.speech) < 20
