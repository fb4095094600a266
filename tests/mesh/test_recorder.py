"""A hop's memory of its frames, and the spans it makes of them."""

from __future__ import annotations

from moshimesh.audio.v1 import audio_pb2
from moshimesh.tunnel.v1 import tunnel_pb2

from services.mesh.recorder import FRAMES_PER_SLOT, HopRecorder
from services.mesh.telemetry import FinishedSpan, FrameTracer
from services.mesh.timings import Timing

MS = 1_000_000
SLOTS = 2


class Spans(list[FinishedSpan]):
    """Where the spans go."""

    def on_end(self, span: FinishedSpan) -> None:
        self.append(span)

    def shutdown(self) -> None:
        pass


def recorder() -> tuple[Spans, HopRecorder]:
    spans = Spans()
    return spans, HopRecorder(FrameTracer(spans), audio_pb2.HOP_LM_STEP, SLOTS, "a model")


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
    assert (step.start, step.end) == (98 * MS, 109 * MS)
    assert step.attributes == {
        "moshimesh.session": "a session", "moshimesh.sequence": 7, "moshimesh.slot": 1, "moshimesh.tick": 3,
        "moshimesh.batch_size": 2, "moshimesh.batch_fill": 1.0, "moshimesh.model_id": "a model"}
    assert step.links == (tick.context,) and tick.parent is None and tick.context.trace_id != 8
    assert (tick.start, tick.end, tick.attributes["moshimesh.rows"]) == (104 * MS, 109 * MS, (0, 1))
    assert [(by_name[f"lm.step.{part}"].start // MS, by_name[f"lm.step.{part}"].end // MS)
            for part in ("transit", "queue", "compute")] == [(98, 100), (100, 104), (104, 109)]
    assert all(by_name[f"lm.step.{part}"].parent == step.context for part in ("transit", "queue", "compute"))


def test_times_are_told_by_the_gateways_clock() -> None:
    spans, hop = recorder()
    hop.record(context(7), timing(3, at=600 * MS), row=1, session="a session")
    hop.keep(keep(7, offset=500 * MS, uncertain=True))
    by_name = {span.name: span for span in spans}
    assert (by_name["lm.step.transit"].end, by_name["lm.step"].end) == (100 * MS, 109 * MS)
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
    silent = HopRecorder(FrameTracer(), audio_pb2.HOP_LM_STEP, SLOTS, "a model")
    silent.record(context(7, flags="01"), timing(3), row=1, session="a session")
    silent.keep(keep(7))
