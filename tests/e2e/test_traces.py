"""The flight recorder against real processes and a real collector: which frames are kept, and what their traces say."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import moshimesh
import numpy as np
import numpy.typing as npt
import pytest

from harness.local_mesh import LocalMesh
from harness.null_mesh import NullMesh
from services.mesh.clock import now_unix_nanos
from services.mesh.recorder import GAP_NANOS
from services.mesh.telemetry import FinishedSpan, FrameTracer, new_trace
from services.mesh.testhooks import CLOCK_SHIFT_MS, DELAY
from tests.e2e.calls import GREEDY, pieces, stepper
from tests.e2e.otlp import HOPS, REMOTE, UNANSWERED, hanging, receiver, sequences

pytestmark = pytest.mark.slow  # each starts a mesh of its own
FRAME_BYTES = 1920 * 2
DEADLINE_MS = 80.0
NEVER = "1000000000"
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # ms between two batches of spans


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
    delays = {31 + 5 * n: place for n, place in enumerate(where)}  # by tick; each comes once
    batchers = {"codec.encode": "encode", "lm.step": "lm", "codec.decode": "decode"}
    asked = ",".join(f"{batchers[hop]}:{part}:{tick}:100" for tick, (hop, part) in delays.items())
    async with receiver() as collected, LinedMesh(slots=4, environment=QUICK | {
            "MOSHIMESH_OTLP_ENDPOINT": collected.endpoint, "MOSHIMESH_TRACE_ONE_IN": NEVER, DELAY: asked}) as mesh:
        live = Live()
        await live.talk(mesh.target, 66)
        await collected.until(lambda: sequences(collected.whole()) == sorted(live.late))
    held_up = {int(tick): float(ms) for line in mesh.lines
               for tick, ms in re.findall(r"delayed \w+ of tick (\d+) of \w+ by ([\d.]+) ms", line)}
    assert set(held_up) >= set(delays)
    frames = [frame for frame in collected.frames() if frame.because == "deadline"]
    assert sequences(frames) == sorted(live.late)  # and so no neighbour that was in time
    for tick, (hop, part) in delays.items():
        # The decoder's first tick is the second frame's: the delay line had no answer for the first one.
        (frame,) = (frame for frame in frames
                    if hop in frame.hops and frame.hops[hop].attributes["moshimesh.tick"] == tick)
        frame.check()
        assert frame.part(hop, part).ms + 0.001 >= held_up[tick]
        longest = max(frame.hops.values(), key=lambda span: span.ms)
        said = frame.root.attributes
        assert said["moshimesh.slowest_hop"] == longest.name
        slowest = frame.part(longest.name, str(said["moshimesh.slowest_part"]))
        assert slowest.ms == max(child.ms for child in frame.children(longest))
        assert said["moshimesh.slowest_part_ms"] == pytest.approx(slowest.ms + 0.001, abs=1e-4)
        for answered in live.speech[int(str(frame.sequence))].hops:
            if answered.hop in REMOTE:
                for name, ms in (("queue", answered.queue_ms), ("compute", answered.compute_ms)):
                    assert frame.ms_of(answered.hop, name) == pytest.approx(ms, abs=0.0021)
        slack_ms = said["moshimesh.deadline_slack_ms"]
        assert slack_ms == pytest.approx(DEADLINE_MS - frame.root.ms) and frame.root.ms > DEADLINE_MS


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
        async with ShiftedMesh(checkpoint, slots=2, environment=QUICK | {
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
            await collected.until(lambda: len(collected.whole()) == len(answers) < len(collected.frames())
                                  and all(frame.complete for frame in collected.frames())
                                  and collected.named("session"))
        await asyncio.to_thread(mine.close)

    (session,), (call,) = collected.named("session"), collected.named("call")
    assert (session.trace_id, session.parent_id) == (call.trace_id, call.span_id)
    assert call.start <= session.start <= session.end <= call.end
    (opened,) = collected.named("session.open")
    assert (opened.trace_id, opened.parent_id) == (session.trace_id, session.span_id)
    assert [event.name for event in session.events] == ["ended"]
    assert {span.service for span in collected.spans} == {"caller", "gateway", "codec", "lm"}
    for span_ in collected.spans:
        if span_.service != "caller":
            assert {"service.instance.id", "service.version", "process.pid"} <= set(span_.resource)
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
        expected = set(HOPS) if frame.sequence else set(HOPS) - UNANSWERED
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
            assert (tick.name, tick.start, tick.end) == (f"{name}.tick", compute.start, compute.end + GAP_NANOS)
            assert tick.attributes["moshimesh.rows"] == [0]


async def test_every_miss_under_overload_is_kept() -> None:
    one_in = 10
    async with receiver() as collected, NullMesh(slots=8, environment=QUICK | {
            "MOSHIMESH_OTLP_ENDPOINT": collected.endpoint, "MOSHIMESH_TRACE_ONE_IN": str(one_in),
            DELAY: "lm:compute:9:90,decode:queue:13:85"}) as mesh:
        calls = [Live() for _ in range(4)]
        await asyncio.gather(*(live.talk(mesh.target, 50) for live in calls))
        late = sum(len(live.late) for live in calls)
        await collected.until(lambda: sum(frame.because == "deadline" for frame in collected.whole()) == late and all(
            frame.complete for frame in collected.frames()))
    frames = collected.frames()
    assert late > 20
    assert sum(frame.because == "deadline" for frame in frames) == late
    others = sum(len(live.speech) - len(live.late) for live in calls)
    # At most one in so many of each call, with the frame that the delay line leaves unanswered.
    assert sum(frame.because == "sampled" for frame in frames) <= others / one_in + len(calls)
    for frame in frames:
        frame.check()
        if frame.because == "deadline":
            assert set(frame.hops) == set(HOPS)


async def test_a_step_that_held_up_others_is_linked() -> None:
    """Two callers; a step with one of them is slow, and the other one's frame waits for it."""
    async with receiver() as collected, NullMesh(slots=4, environment=QUICK | {
            "MOSHIMESH_OTLP_ENDPOINT": collected.endpoint, "MOSHIMESH_TRACE_ONE_IN": NEVER,
            DELAY: "lm:compute:10:120"}) as mesh:
        calls = [Live(), Live()]

        async def talk_later() -> None:
            await asyncio.sleep(0.04)  # between two frames of the other one
            await calls[1].talk(mesh.target, 40)

        await asyncio.gather(calls[0].talk(mesh.target, 40), talk_later())
        late = sum(len(live.late) for live in calls)
        await collected.until(lambda: len(collected.whole()) >= late > 0
                              and all(frame.complete for frame in collected.frames()))
    ticks = {span.span_id: span for span in collected.named("lm.step.tick")}
    frames = [frame for frame in collected.frames() if "lm.step" in frame.hops]
    waits = {(frame.hops["lm.step"].attributes["moshimesh.session"], ticks[span_id].attributes["moshimesh.tick"])
             for frame in frames for _, span_id in frame.hops["lm.step"].links[1:]}
    assert len(waits) > 2
    for frame in frames:
        step = frame.hops["lm.step"]
        own, *causes = (ticks[span_id] for _, span_id in step.links)
        assert own.attributes["moshimesh.tick"] == step.attributes["moshimesh.tick"]
        for cause in causes:
            queue = frame.part("lm.step", "queue")
            assert cause.start < queue.end and cause.end > queue.start
        if frame.ms_of("lm.step", "queue") > 80:
            assert causes and max(cause.ms for cause in causes) > 40


@pytest.mark.parametrize(("number", "event"), [(signal.SIGKILL, "failover"), (signal.SIGTERM, "drained")])
async def test_the_frames_around_a_move_are_kept(number: signal.Signals, event: str) -> None:
    around = set(range(26, 36))
    async with receiver() as collected, NullMesh(slots=4, replicas=2, environment=QUICK | {
            "MOSHIMESH_OTLP_ENDPOINT": collected.endpoint, "MOSHIMESH_TRACE_ONE_IN": NEVER}) as mesh:
        live = Live()

        async def stop(sequence: int) -> None:
            if sequence == 30:
                mesh.processes[await stepper(mesh)].send(number)

        await live.talk(mesh.target, 60, stop)
        # What the lost replica had done of a frame, the gateway tells from what has come with the frame. A null process
        # is a codec, too, whose tunnels end with its lm's, without a drain of their own: it may be asked too late.
        needed = set(HOPS) if event == "failover" else set(HOPS) - {"codec.encode", "codec.decode"}
        await collected.until(lambda: around <= set(sequences(collected.whole())) and collected.named("session")
                              and all(needed <= set(frame.hops) for frame in collected.frames()))
    (session,) = collected.named("session")
    events = {event.name for event in session.events}
    assert event in events
    frames = collected.frames()
    assert around <= set(sequences(frames))
    if "skipped" not in events:  # by a machine that is busy with something else
        near = [frame.sequence for frame in frames if frame.because == "event"]
        assert min(near) > 15 and max(near) < 50, near  # type: ignore[type-var]
    for frame in frames:
        assert frame.root.links[0][1] == session.span_id
        assert needed <= set(frame.hops), (frame.sequence, set(frame.hops))


async def test_frames_that_a_killed_replica_was_asked_for_have_no_holes() -> None:
    """The replica sends its spans so rarely that it is killed before: the gateway knows all of the timings."""
    async with receiver() as collected, NullMesh(slots=4, replicas=2, environment={
            "MOSHIMESH_OTLP_ENDPOINT": collected.endpoint, "MOSHIMESH_TRACE_ONE_IN": "1"}) as mesh:
        live, killed = Live(), ""

        async def stop(sequence: int) -> None:
            nonlocal killed
            if sequence == 30:
                killed = await stepper(mesh)
                mesh.processes[killed].send(signal.SIGKILL)

        await live.talk(mesh.target, 50, stop)
        await collected.until(lambda: set(live.speech) <= set(sequences(collected.whole()))
                              and all("lm.step" in frame.hops for frame in collected.frames()))
    frames = {frame.sequence: frame for frame in collected.frames()}
    assert all(set(frames[sequence].hops) == set(HOPS) for sequence in live.speech)
    told = [frame for frame in frames.values() if "server.address" in frame.hops["lm.step"].attributes]
    assert told and all(str(mesh.ports[killed.replace("codec", "lm")]) in str(
        frame.hops["lm.step"].attributes["server.address"]) for frame in told)


async def test_the_frames_after_a_cut_are_kept() -> None:
    async with receiver() as collected, NullMesh(slots=4, replicas=2, environment=QUICK | {
            "MOSHIMESH_OTLP_ENDPOINT": collected.endpoint, "MOSHIMESH_TRACE_ONE_IN": NEVER}) as mesh:
        live = Live()

        async def stop(sequence: int) -> None:
            if sequence == 30:
                mesh.processes["gateway"].send(signal.SIGTERM)

        await live.talk(mesh.addresses("gateway"), 60, stop)
        await collected.until(lambda: len(collected.named("session")) == 2)
    before, after = sorted(collected.named("session"), key=lambda session: session.start)
    assert before.attributes["moshimesh.session"] == after.attributes["moshimesh.session"]
    (resumed,) = (event for event in after.events if event.name == "resumed")
    first = resumed.attributes["moshimesh.sequence"]
    assert first > 25  # type: ignore[operator]
    kept = {frame.sequence for frame in collected.frames() if frame.root.links[0][1] == after.span_id}
    assert set(range(first, first + 5)) <= kept and min(kept) >= first  # type: ignore[type-var, arg-type, operator]


@pytest.mark.parametrize("collector", ["hangs", "is gone"])
async def test_a_collector_that_does_not_answer_costs_no_audio(collector: str) -> None:
    async with hanging() as endpoint:
        if collector == "is gone":
            endpoint = "http://127.0.0.1:9"
        async with NullMesh(slots=8, environment=QUICK | {
                "MOSHIMESH_OTLP_ENDPOINT": endpoint, "MOSHIMESH_TRACE_ONE_IN": "1"}) as mesh:
            calls = [Live() for _ in range(4)]
            await asyncio.gather(*(live.talk(mesh.target, 75) for live in calls))
        codes = {name: process.child and process.child.returncode for name, process in mesh.processes.items()}
    # Nor does it keep the processes from ending: who does not end is killed.
    assert codes["gateway"] == codes["codec"] == 0, codes
    for live in calls:
        assert live.summary is not None
        assert len(live.speech) + live.summary.frames_skipped == 75
        # Each frame is kept; had one waited for the collector, it would have been for the 5 s of an export.
        assert all(live.latency_ms(sequence) < 2500 for sequence in live.speech)
