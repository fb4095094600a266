"""What one frame adds to the gateway's metrics."""

from __future__ import annotations

import pytest
from moshimesh.audio.v1 import audio_pb2
from opentelemetry.trace import SpanContext, TraceFlags

from services.gateway.path.observer import Change
from services.gateway.watching.metering import CallMeter, GatewayMetrics
from services.mesh.metrics import Metrics, Series
from services.mesh.recorder import HOP_NAMES

MS = 1_000_000
EPOCH = 1_800_000_000_000 * MS
KEPT = SpanContext(0xAB << 120, 0xCD << 56, False, TraceFlags(1))


def context(sequence: int = 0, late_ms: int = 0, encoder_ahead_ms: int = 0) -> audio_pb2.FrameContext:
    """A frame that takes 21 ms: per engine 1 of transit, 2 of queue and 3 of computation; and 3 at the gateway."""
    frame = audio_pb2.FrameContext(sequence=sequence)
    at = EPOCH + sequence * 80 * MS
    for hop in HOP_NAMES:
        ahead = encoder_ahead_ms * MS if hop == audio_pb2.HOP_CODEC_ENCODE else 0
        engine = not HOP_NAMES[hop].startswith("gateway")
        received = at + (1 * MS if hop != audio_pb2.HOP_GATEWAY_INGEST else 0)
        started = received + 2 * MS * engine + (late_ms * MS if hop == audio_pb2.HOP_LM_STEP else 0)
        finished = started + (3 * MS if engine else MS)
        frame.hops.add(hop=hop, received_unix_nanos=received + ahead, dequeued_unix_nanos=started + ahead,
                       started_unix_nanos=started + ahead, finished_unix_nanos=finished + ahead, batch_size=1,
                       returned_unix_nanos=finished if engine else 0)
        at = finished
    return frame


def seconds(metrics: Metrics, name: str) -> dict[tuple[str, ...], Series]:
    (histogram,) = (one for one in metrics._histograms if one.name == name)
    return {tuple(series.attributes.values()): series for series in histogram.all()}


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.enabled = True
    return metrics


def started(metrics: GatewayMetrics, live: bool = True, resumed: bool = False) -> CallMeter:
    meter = metrics.call(live, resumed)
    meter.opened(80 * MS)
    return meter


def test_the_parts_of_a_frame_are_all_of_it(metrics: Metrics) -> None:
    meter = started(GatewayMetrics(metrics))
    meter.frame(context())
    parts = seconds(metrics, "moshimesh.hop.duration")
    assert len(parts) == 3 * len(HOP_NAMES) - 1  # nothing travels to where a frame begins
    assert parts["lm.step", "queue"].total == pytest.approx(0.002)
    assert parts["lm.step", "compute"].total == pytest.approx(0.003)
    assert parts["lm.step", "transit"].total == pytest.approx(0.001)
    (duration,) = (one for one in seconds(metrics, "moshimesh.frame.duration").values() if one.total)
    assert sum(part.total for part in parts.values()) == pytest.approx(duration.total) == pytest.approx(0.021)
    assert seconds(metrics, "moshimesh.realtime.factor")[()].total == pytest.approx(0.080 / 0.009)


def test_a_frame_that_takes_longer_than_it_lasts_is_a_miss(metrics: Metrics) -> None:
    gateway = GatewayMetrics(metrics)
    meter = started(gateway)
    for sequence in range(10):
        meter.frame(context(sequence, late_ms=70 if sequence == 5 else 0))
    assert (gateway.misses, gateway.frames) == (1, {True: 10, False: 0})
    offline = started(gateway, live=False)
    offline.frame(context(late_ms=500))
    assert (gateway.misses, gateway.frames) == (1, {True: 10, False: 1})


def test_another_host_s_clock_does_no_harm(metrics: Metrics) -> None:
    meter = started(GatewayMetrics(metrics))
    meter.frame(context(encoder_ahead_ms=500))
    parts = seconds(metrics, "moshimesh.hop.duration")
    assert parts["codec.encode", "transit"].total == pytest.approx(0.001)
    assert parts["lm.step", "transit"].total == pytest.approx(0.001)


def test_a_kept_frame_is_an_exemplar_everywhere(metrics: Metrics) -> None:
    meter = started(GatewayMetrics(metrics))
    meter.frame(context(0))
    meter.frame(context(1), KEPT)
    assert all(next(iter(part.exemplars.values()))[2] is KEPT
               for part in seconds(metrics, "moshimesh.hop.duration").values())
    points = [point for metric in metrics.to_otlp() if metric.name == "moshimesh.frame.duration"
              for point in metric.histogram.data_points]
    assert [exemplar.trace_id for point in points for exemplar in point.exemplars] == [
        KEPT.trace_id.to_bytes(16, "big")]


def test_how_a_call_ends(metrics: Metrics) -> None:
    gateway = GatewayMetrics(metrics)
    for resumed in (False, True):
        meter = started(gateway, resumed=resumed)
        assert gateway.live == 1
        meter.frame(context())
        meter.ended("completed")
        assert gateway.live == 0
    gateway.call(True, False).ended("TOO_MANY_CALLS")  # one that never had its slots
    ended = {attributes["reason"]: count for attributes, count in gateway.ended.read()}
    assert ended == {"completed": 2, "TOO_MANY_CALLS": 1}
    assert gateway.resumes == 1 and gateway.live == 0
    assert sum(seconds(metrics, "moshimesh.mos")["call",].counts) == 2


def test_skipped_frames_and_moves(metrics: Metrics) -> None:
    gateway = GatewayMetrics(metrics)
    meter = started(gateway)
    meter.frame(context(0))
    meter.skipped(2)
    meter.skipped(1)
    meter.frame(context(4))
    meter.skipped(1)
    for change in (Change.FAILED_OVER, Change.DRAINED):
        meter.moved("lm", change)
    meter.ended("completed")
    assert gateway.skipped == 4
    moved = {(a["service"], a["kind"]): count for a, count in gateway.failovers.read() if count}
    assert moved == {("lm", "lost"): 1, ("lm", "drained"): 1}


def test_skipped_frames_are_lost_to_the_listener(metrics: Metrics) -> None:
    """The score of a call whose frames were skipped is lower than that of one that went well."""
    gateway = GatewayMetrics(metrics)
    for skipped in (0, 5):
        meter = started(gateway)
        for sequence in range(10):
            meter.frame(context(sequence))
        meter.skipped(skipped)
        meter.frame(context(10))
        meter.ended("completed")
    scores = seconds(metrics, "moshimesh.mos")["call",]
    assert sum(scores.counts) == 2 and sum(count > 0 for count in scores.counts) == 2


def test_without_a_reader_nothing_is_measured() -> None:
    quiet = GatewayMetrics(Metrics())
    meter = started(quiet)
    meter.heard(0.08)
    meter.frame(context())
    assert quiet.frames == {True: 0, False: 0}
