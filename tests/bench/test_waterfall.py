"""A frame's trace, from what a receiver gets to what a person reads."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from bench.trace import chosen
from bench.waterfall import PARTS, axis, bad_parents, bar, draw, frames_of, show, verdict
from harness.receiver import Event, Span, read, save

MS = 1_000_000
BEGIN = 1_700_000_000_000_000_000
# name: service, transit, queue and compute in ms
WAY = {"gateway.ingest": ("gateway", 0, 0, 1), "codec.encode": ("codec", 1, 2, 4), "lm.step": ("lm", 1, 0, 100),
       "codec.decode": ("codec", 1, 30, 4), "gateway.emit": ("gateway", 1, 0, 1)}


def frame(sequence: int = 7, session: str = "s") -> list[Span]:
    """A frame whose lm took 100 ms."""
    trace, spans, at, number = f"{sequence + 1:032x}", [], BEGIN, 1

    def add(service: str, name: str, start: int, end: int, parent: str, **attributes: int | float | str) -> str:
        nonlocal number
        number += 1
        named = {f"moshimesh.{key}": value for key, value in attributes.items()}
        links = [("f" * 32, "e" * 16)] if name == "frame" else []
        events = [Event("skipped", start, {"moshimesh.frames": 2})] if name == "frame" else []
        spans.append(Span(service, name, trace, f"{number:016x}", parent, start, end, named, links, events,
                          {"service.name": service}))
        return f"{number:016x}"

    length = sum(sum(parts) for _, *parts in WAY.values()) * MS
    root = add("gateway", "frame", at, at + length, "", sequence=sequence, session=session, kept_because="deadline")
    for name, (service, *parts) in WAY.items():
        hop = add(service, name, at, at + sum(parts) * MS, root, batch_size=3, batch_fill=0.375, tick=12, slot=1)
        for part, length in zip(PARTS, parts, strict=True):
            add(service, f"{name}.{part}", at, at + length * MS, hop)
            at += length * MS
    return spans


def test_a_frame_is_put_together_whatever_the_order_in_which_its_spans_come() -> None:
    (one,) = frames_of(reversed(frame()))
    assert [hop.name for hop in one.hops] == list(WAY)
    assert (one.sequence, one.session, one.ms, one.explained_ms, one.late) == (7, "s", 146.0, 146.0, True)
    assert [one.hops[1].ms(part) for part in PARTS] == [1.0, 2.0, 4.0]


def test_the_verdict_names_the_longest_part() -> None:
    (one,) = frames_of(frame())
    assert verdict(one) == ("Frame 7 was 66.0 ms late: computing lm.step took 100.0 of 146.0 ms "
                            "(68%; batch of 3, tick 12).")


def test_a_frame_without_hops_says_so() -> None:
    (one,) = frames_of(frame()[:1])
    assert "No hop" in verdict(one)


def test_the_waterfall_is_to_scale_and_readable_without_colours() -> None:
    (one,) = frames_of(frame())
    bars = [bar(one, hop, 146).plain for hop in one.hops]
    assert bars[2].index("█") == 9 and bars[2].count("█") == 100  # one cell a millisecond
    assert bars[3].strip() == "·" + "▒" * 30 + "█" * 4
    console = Console(width=110, file=io.StringIO())
    show(one, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "frame 7, 146.0 ms of 80, kept: deadline" in text
    assert "3 (38%)" in text
    assert all(len(line) <= 110 for line in text.splitlines())


@pytest.mark.parametrize("cells", (20, 60, 200))
@pytest.mark.parametrize("total_ms", (0.004, 3.0, 80.0, 146.0, 9000.0))
def test_the_axis_fits(total_ms: float, cells: int) -> None:
    assert axis(total_ms, cells).plain.startswith("|0")
    assert len(axis(total_ms, cells).plain) == cells


def test_a_short_part_has_a_cell() -> None:
    (one,) = frames_of(frame())
    assert all("█" in bar(one, hop, 20).plain for hop in one.hops)


def test_good_families_have_nothing_wrong() -> None:
    assert bad_parents(frame(1) + frame(2)) == []


def test_wrong_families_are_found() -> None:
    spans = frame()
    hop = next(span for span in spans if span.name == "lm.step")
    part = next(span for span in spans if span.name == "lm.step.queue")
    others = [span for span in spans if span not in (hop, part)]
    missing = bad_parents([*others, part])
    assert any("lm.step.queue" in line and "not come" in line for line in missing)
    assert any("its parent is frame" in line
               for line in bad_parents([*others, hop, dataclasses.replace(part, parent_id=spans[0].span_id)]))
    (outside,) = bad_parents([*others, hop, dataclasses.replace(part, start=part.start - 2 * MS)])
    assert "1.000 ms before" in outside  # it came after 1 ms of transit


def test_spans_of_other_traces_are_not_judged() -> None:
    stranger = dataclasses.replace(frame()[0], name="session", trace_id="9" * 32, parent_id="8" * 16)
    tick = dataclasses.replace(stranger, name="lm.step.tick", parent_id="")
    assert bad_parents([stranger, tick]) == []


def test_saved_spans_come_back(tmp_path: Path) -> None:
    spans = frame()
    save(spans, tmp_path / "trace.json")
    assert frames_of(read(tmp_path / "trace.json")) == frames_of(spans)
    assert f'"traceId": "{spans[0].trace_id}"' in (tmp_path / "trace.json").read_text()  # in hex, as OTLP/JSON has it


def test_what_is_not_otlp_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"resourceSpans": 3}')
    with pytest.raises(ValueError, match="not OTLP/JSON"):
        read(tmp_path / "x.json")


def test_a_frame_is_chosen_by_number_or_by_length() -> None:
    frames = frames_of(frame(3) + frame(4) + frame(5)[:-12])
    assert chosen(frames, 4).sequence == 4
    assert chosen(frames, None).sequence in (3, 4)  # 5 has not got all of its hops
    with pytest.raises(ValueError, match="frame 9 was not kept; there are 3 from 3 to 5"):
        chosen(frames, 9)
    with pytest.raises(ValueError, match="no frame"):
        chosen([], None)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    frames = frames_of(frame(3) + frame(4))
    draw(frames[0], frames, tmp_path / "trace.png")
    assert (tmp_path / "trace.png").stat().st_size > 10_000
