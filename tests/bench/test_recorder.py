"""What `make bench-recorder` makes of callers' latencies and of the traces that came."""

from __future__ import annotations

import dataclasses

import pytest

from bench.recorder import Sample, calm, explained, growth, is_whole, kept
from bench.waterfall import frames_of
from harness.load import Caller
from tests.bench.test_waterfall import frame


def sample(late_share: float = 0.0, **cpu_ms: float) -> Sample:
    return Sample(cpu_ms, 20.0, 30.0, 100, late_share, 0, 0)


def caller(session: str = "s", **latencies: float) -> Caller:
    """Frames by number (`f7=90.0`) and how long they took in the gateway; 2 ms longer for the caller."""
    by_sequence = {int(name[1:]): ms for name, ms in latencies.items()}
    return Caller(0, session=session, gateway_ms=by_sequence,
                  latency_ms={sequence: ms + 2 for sequence, ms in by_sequence.items()})


def test_a_cost_is_the_growth_of_the_process_that_takes_most() -> None:
    off, on = sample(codec=4.0, gateway=1.0), sample(codec=4.1, gateway=1.5)
    assert growth(off, on) == pytest.approx(0.025)
    assert growth(off, on, "gateway") == pytest.approx(0.5)


def test_turns_with_late_frames_only_count_when_there_are_no_others() -> None:
    good, bad = (sample(codec=1.0), sample(codec=1.0)), (sample(codec=1.0), sample(0.2, codec=1.0))
    assert calm([bad, good]) == [good]
    assert calm([bad]) == [bad]


def test_misses_are_held_against_traces() -> None:
    spans = [*frame(7), *frame(8), *frame(9)[:-3], *frame(20)]  # 9 has lost a hop
    found = kept([caller(f7=146.0, f8=81.0, f9=90.0, f10=99.0, f20=79.0, f21=10.0)], frames_of(spans))
    assert (found.frames, found.misses, found.misses_with_a_root, found.misses_traced) == (6, 4, 3, 2)
    assert (found.others, found.others_sampled, found.others_near_events) == (2, 1, 0)


def test_more_than_one_in_so_many_is_noticed() -> None:
    spans = [*frame(20), *frame(21)]
    for index, span in enumerate(spans):
        spans[index] = dataclasses.replace(span, attributes={**span.attributes, "moshimesh.kept_because": "sampled"})
    assert kept([caller(f20=30.0, f21=30.0)], frames_of(spans)).beyond_rate == 1
    assert kept([caller(**{f"f{number}": 30.0 for number in range(101)})], frames_of(spans)).beyond_rate == 0


def test_frames_near_an_event_are_not_taken_for_sampled_ones() -> None:
    spans = frame(20)
    spans[0] = dataclasses.replace(spans[0], attributes={**spans[0].attributes, "moshimesh.kept_because": "event"})
    found = kept([caller(f20=30.0)], frames_of(spans))
    assert (found.others_sampled, found.others_near_events) == (0, 1)


def test_another_calls_frames_do_not_count() -> None:
    assert kept([caller("other", f7=146.0)], frames_of(frame(7))).misses_traced == 0


def test_a_whole_trace_has_all_hops_with_all_parts() -> None:
    (whole,) = frames_of(frame(7))
    (no_transit,) = frames_of([span for span in frame(7) if span.name != "lm.step.transit"])
    assert is_whole(whole) and not is_whole(no_transit)


def test_what_hops_explain_is_held_against_the_callers_clock() -> None:
    of_caller, of_gateway = explained([caller(f7=146.0)], frames_of(frame(7)))
    assert of_caller == [pytest.approx(146 / 148)]
    assert of_gateway == [pytest.approx(1.0)]
