"""A hop's memory of its frames, and the spans it makes of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence

from moshimesh.audio.v1 import audio_pb2
from moshimesh.tunnel.v1 import tunnel_pb2

from services.mesh.batching import Batcher
from services.mesh.recorder import FRAMES_PER_SLOT, GAP_NANOS, MOST_CAUSES, HopRecorder
from services.mesh.telemetry import FinishedSpan, FrameTracer
from services.mesh.timings import Timing, Work

MS = 1_000_000
SLOTS = 2


class Spans(list[FinishedSpan]):
    """Where the spans go."""

    def on_end(self, span: FinishedSpan) -> None:
        self.append(span)

    def shutdown(self) -> None:
        pass


def recorder(*recent: Work) -> tuple[Spans, HopRecorder]:
    spans = Spans()
    return spans, HopRecorder(FrameTracer(spans), audio_pb2.HOP_LM_STEP, SLOTS, "a model", deque(recent))


def context(number: int, flags: str = "00") -> audio_pb2.FrameContext:
    return audio_pb2.FrameContext(sequence=number, traceparent=f"00-{number + 1:032x}-{number + 1:016x}-{flags}")


def timing(tick: int, at: int = 100 * MS) -> Timing:
    return Timing(at, at + 3 * MS, at + 4 * MS, at + 9 * MS, tick, [0, 1])


def keep(number: int, began: int = 98 * MS, offset: int = 0, uncertain: bool = False) -> tunnel_pb2.Keep:
    return tunnel_pb2.Keep(traceparent=context(number).traceparent, sequence=number, hop=audio_pb2.HOP_LM_STEP,
                           began_unix_nanos=began, clock_offset_nanos=offset, clock_uncertain=uncertain)


def test_a_kept_frame_becomes_spans_and_is_forgotten() -> None:
    spans, hop = recorder()
    hop.record(context(7), timing(3), row=1, session="a session")
    assert not spans
    hop.keep(keep(7))
    hop.keep(keep(7))
    hop.keep(keep(8))
    by_name = {span.name: span for span in spans}
    assert len(by_name) == len(spans) == 5
    step, tick = by_name["lm.step"], by_name["lm.step.tick"]
    assert step.parent is not None and (step.parent.trace_id, step.parent.span_id) == (8, 8)
    assert (step.start, step.end) == (98 * MS, 109 * MS - GAP_NANOS)
    assert step.attributes == {
        "moshimesh.session": "a session", "moshimesh.sequence": 7, "moshimesh.slot": 1, "moshimesh.tick": 3,
        "moshimesh.batch_size": 2, "moshimesh.batch_fill": 1.0, "moshimesh.model_id": "a model"}
    assert step.links == (tick.context,) and tick.parent is None and tick.context.trace_id != 8
    assert (tick.start, tick.end, tick.attributes["moshimesh.rows"]) == (104 * MS, 109 * MS, (0, 1))
    assert [(by_name[f"lm.step.{part}"].start / MS, (by_name[f"lm.step.{part}"].end + GAP_NANOS) / MS)
            for part in ("transit", "queue", "compute")] == [(98, 100), (100, 104), (104, 109)]
    assert all(by_name[f"lm.step.{part}"].parent == step.context for part in ("transit", "queue", "compute"))


def test_times_are_told_by_the_gateways_clock() -> None:
    spans, hop = recorder()
    hop.record(context(7), timing(3, at=600 * MS), row=1, session="a session")
    hop.keep(keep(7, offset=500 * MS, uncertain=True))
    by_name = {span.name: span for span in spans}
    assert (by_name["lm.step.transit"].end, by_name["lm.step"].end) == (100 * MS - GAP_NANOS, 109 * MS - GAP_NANOS)
    assert by_name["lm.step.tick"].end == 109 * MS
    said = by_name["lm.step"].attributes
    assert (said["moshimesh.clock_offset_ms"], said["moshimesh.clock_uncertain"]) == (500.0, True)


def test_the_frames_of_a_tick_share_its_span() -> None:
    spans, hop = recorder()
    for number in (1, 2):
        hop.record(context(number), timing(3), row=number, session="a session")
        hop.keep(keep(number))
    (tick,) = (span for span in spans if span.name == "lm.step.tick")
    assert [span.links for span in spans if span.name == "lm.step"] == [(tick.context,)] * 2


def test_what_ran_while_a_frame_waited_is_sent_and_linked() -> None:
    """The frame waits from 100 to 104 ms: first for another's step, then for a chunk of a session's history."""
    other, chunk = Work(80 * MS, 102 * MS, 2, [1]), Work(102 * MS, 104 * MS, 0, [0], "another session")
    spans, hop = recorder(Work(60 * MS, 79 * MS, 1, [0]), other, chunk, Work(104 * MS, 109 * MS, 3, [0, 1]))
    hop.record(context(7), timing(3), row=1, session="a session")
    hop.keep(keep(7))
    found = {(span.name, span.start // MS): span for span in spans if span.parent is None}
    assert set(found) == {("lm.step.tick", 104), ("lm.step.tick", 80), ("lm.step.rebuild", 102)}
    (step,) = (span for span in spans if span.name == "lm.step")
    assert {link.span_id for link in step.links} == {span.context.span_id for span in found.values()}
    assert step.links[0] == found["lm.step.tick", 104].context
    assert found["lm.step.tick", 80].attributes["moshimesh.tick"] == 2
    assert found["lm.step.rebuild", 102].attributes["moshimesh.session"] == "another session"
    hop.record(context(8), timing(3), row=0, session="a session")
    hop.keep(keep(8))
    assert len([span for span in spans if span.parent is None]) == 3  # each is sent once


def test_only_the_longest_causes_are_linked() -> None:
    works = [Work((100 + 2 * number) * MS, (101 + 2 * number) * MS + number * 1000, number + 1, [0])
             for number in range(20)]
    spans, hop = recorder(*works)
    hop.record(context(7), Timing(100 * MS, 139 * MS, 140 * MS, 150 * MS, 30, [0]), row=0, session="a session")
    hop.keep(keep(7))
    ticks = [span.attributes["moshimesh.tick"] for span in spans if span.parent is None]
    assert ticks == [30, 20, 19, 18, 17][:MOST_CAUSES + 1]


class SlowStepper:
    """Steps and opens rows in its own time."""

    slots = 2

    def open(self, row: int, chunks: int) -> Iterator[None]:
        for _ in range(chunks):
            time.sleep(0.02)
            yield

    def step(self, rows: Sequence[int], payloads: Sequence[int]) -> Sequence[int]:
        time.sleep(0.005)
        return payloads


async def test_a_batcher_remembers_what_held_up_a_frame() -> None:
    """One session talks while another one's history is rebuilt: its wait is explained by the chunks."""
    batcher: Batcher[int, int, int] = Batcher("lm", SlowStepper())
    spans = Spans()
    hop = HopRecorder(FrameTracer(spans), audio_pb2.HOP_LM_STEP, SLOTS, "a model", batcher.recent)

    async def frames() -> AsyncIterator[int]:
        for number in range(8):
            yield number
            await asyncio.sleep(0.01)

    with batcher.lease("talks", 0) as talking:
        await talking.opened()
        with batcher.lease("is rebuilt", 10) as rebuilt:
            async for answer in talking.serve(frames()):
                hop.record(context(answer.result), answer.timing, talking.row, "talks")
                hop.keep(keep(answer.result, began=answer.timing.received_unix_nanos - MS))
            await rebuilt.opened()
    await batcher.close()
    chunks = {span.context.span_id: span for span in spans if span.name == "lm.step.rebuild"}
    assert {span.attributes["moshimesh.session"] for span in chunks.values()} == {"is rebuilt"}
    waited = [span for span in spans if span.name == "lm.step" and any(link.span_id in chunks for link in span.links)]
    assert len(waited) >= 4


def test_a_frame_that_its_caller_has_sampled_is_sent_at_once() -> None:
    spans, hop = recorder()
    hop.record(context(7, flags="01"), timing(3), row=1, session="a session")
    assert {span.name for span in spans} == {"lm.step", "lm.step.queue", "lm.step.compute", "lm.step.tick"}


def test_the_memory_is_bounded() -> None:
    spans, hop = recorder()
    most = SLOTS * FRAMES_PER_SLOT
    for number in range(most + 1):
        hop.record(context(number), timing(number), row=0, session="a session")
    hop.keep(keep(0))
    assert not spans
    hop.keep(keep(1))
    assert spans


def test_what_names_no_trace_is_not_remembered() -> None:
    spans, hop = recorder()
    for traceparent in ("", "x" * 55, "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 100_000):
        hop.record(audio_pb2.FrameContext(traceparent=traceparent), timing(1), row=0, session="a session")
        hop.keep(tunnel_pb2.Keep(traceparent=traceparent))
    assert not spans
    silent = HopRecorder(FrameTracer(), audio_pb2.HOP_LM_STEP, SLOTS, "a model", deque())
    silent.record(context(7, flags="01"), timing(3), row=1, session="a session")
    silent.keep(keep(7))
