"""A frame's trace as a picture: which hop, which queue, which batch made it late.

From spans, live or saved, to the frames in them (`frames_of`), to a few lines for the terminal (`show`) and a PNG
(`draw`). Nothing here knows where the spans come from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.receiver import Attributes, Span

HOPS = ("gateway.ingest", "codec.encode", "lm.step", "codec.decode", "gateway.emit")
PARTS = ("transit", "queue", "compute")
DEADLINE_MS = 80.0
# The shapes differ, too: a waterfall pasted into an issue has no colours.
MARKS = {"transit": ("·", "grey62"), "queue": ("▒", "yellow"), "compute": ("█", "green")}
HOP_COLOURS = dict(zip(HOPS, ("#8a8f98", "#2f7ed8", "#d9480f", "#2b8a3e", "#5f3dc4"), strict=True))
INSIDE_NS = 1_000  # clocks of one process are read more than once for a moment that two spans share


@dataclass(frozen=True)
class Hop:
    """One stage of a frame's way, and its parts: transit (the way there), queue, compute."""

    span: Span
    parts: dict[str, Span]

    @property
    def name(self) -> str:
        return self.span.name

    def ms(self, part: str) -> float:
        """Length of a part; 0 for one that was not recorded."""
        return self.parts[part].ms if part in self.parts else 0.0


@dataclass(frozen=True)
class Frame:
    """One frame's trace."""

    root: Span
    hops: Sequence[Hop]
    """By their start."""

    @property
    def sequence(self) -> int:
        return int(str(self.root.attributes.get("moshimesh.sequence", -1)))

    @property
    def session(self) -> str:
        return str(self.root.attributes.get("moshimesh.session", ""))

    @property
    def ms(self) -> float:
        """From the arrival of the frame's last sample at the gateway to its answer."""
        return self.root.ms

    @property
    def late(self) -> bool:
        return self.ms > DEADLINE_MS

    @property
    def explained_ms(self) -> float:
        """What the parts of all hops add up to."""
        return sum(hop.ms(part) for hop in self.hops for part in PARTS)

    @property
    def longest(self) -> tuple[Hop, str] | None:
        """The hop and part that took the most time; None for a frame without hops."""
        parts = [(hop, part) for hop in self.hops for part in PARTS]
        return max(parts, key=lambda one: one[0].ms(one[1]), default=None)


def frames_of(spans: Iterable[Span]) -> list[Frame]:
    """The frames in the spans, by their start; those whose root has not come are left out."""
    traces: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    frames = []
    for trace in traces.values():
        for root in (span for span in trace if span.name == "frame"):
            hops = [Hop(span, {part.name.rpartition(".")[2]: part for part in trace if part.parent_id == span.span_id})
                    for span in trace if span.name in HOPS and span.parent_id == root.span_id]
            frames.append(Frame(root, sorted(hops, key=lambda hop: (hop.span.start, HOPS.index(hop.name)))))
    return sorted(frames, key=lambda frame: frame.root.start)


def bad_parents(spans: Iterable[Span]) -> list[str]:
    """What is wrong with the families of frames' traces, one line for each span that has a wrong one.

    Every span of a frame's trace but its root must have its parent in the trace, be named after it (a hop under the
    frame, a part under its hop), and lie inside of it.
    """
    spans = list(spans)
    frames = {span.trace_id for span in spans if span.name == "frame"}
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    wrong = []
    for span in spans:
        is_part = span.name.rpartition(".")[0] in HOPS and span.name.rpartition(".")[2] in PARTS
        if not (span.trace_id in frames or is_part or span.name in HOPS) or span.name == "frame":
            continue
        parent = by_id.get((span.trace_id, span.parent_id))
        expected = span.name.rpartition(".")[0] if is_part else "frame"
        if parent is None:
            wrong.append(f"{span.name} of {span.trace_id}: its parent has not come")
        elif parent.name != expected:
            wrong.append(f"{span.name} of {span.trace_id}: its parent is {parent.name}")
        elif span.start < parent.start - INSIDE_NS or span.end > parent.end + INSIDE_NS:
            wrong.append(f"{span.name} of {span.trace_id}: {(parent.start - span.start) / 1e6:.3f} ms before and "
                         f"{(span.end - parent.end) / 1e6:.3f} ms after its parent {parent.name}")
    return wrong


def verdict(frame: Frame) -> str:
    """One sentence: what took the frame's time."""
    if frame.longest is None:
        return "No hop of this frame has come: is every service given the same OTLP endpoint?"
    hop, part = frame.longest
    words = {"transit": "the way to", "queue": "the queue of", "compute": "computing"}
    share = hop.ms(part) / frame.ms if frame.ms else 0.0
    batch = _of_batch(hop.span.attributes)
    lateness = f"{frame.ms - DEADLINE_MS:.1f} ms late" if frame.late else "in time"
    return (f"Frame {frame.sequence} was {lateness}: {words[part]} {hop.name} took {hop.ms(part):.1f} of "
            f"{frame.ms:.1f} ms ({share:.0%}{batch}).")


def show(frame: Frame, console: Console) -> None:
    """The waterfall in the terminal."""
    console.print(waterfall(frame, console.width))


def waterfall(frame: Frame, width: int) -> RenderableType:
    """Title, one line a hop with its bar over time, the time axis, and the verdict."""
    cells = max(width - 66, 20)
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("hop", no_wrap=True)
    table.add_column("", no_wrap=True, width=cells)
    for name in (*PARTS, "batch", "tick", "row"):
        table.add_column(name, justify="right", no_wrap=True)
    for hop in frame.hops:
        attributes = hop.span.attributes
        table.add_row(hop.name, bar(frame, hop, cells), *(f"{hop.ms(part):.1f}" for part in PARTS),
                      *(["", "", ""] if not attributes.get("moshimesh.tick") else
                        [_batch(attributes), str(attributes["moshimesh.tick"]), _shown(attributes, "moshimesh.slot")]))
    table.add_row("ms", axis(max(frame.ms, 0.001), cells),
                  *(f"{sum(hop.ms(part) for hop in frame.hops):.1f}" for part in PARTS), style="dim")
    legend = Text("  ").join(Text(f"{mark} {part}", style=colour) for part, (mark, colour) in MARKS.items())
    ids = Text(f"session {frame.session}, trace {frame.root.trace_id}", style="dim")
    return Group(Text(title(frame), style="bold"), ids, table, legend, Text(verdict(frame)))


def title(frame: Frame) -> str:
    """Which frame this is."""
    facts = [f"frame {frame.sequence}", f"{frame.ms:.1f} ms of {DEADLINE_MS:.0f}"]
    if because := frame.root.attributes.get("moshimesh.kept_because"):
        facts.append(f"kept: {because}")
    if model := frame.root.attributes.get("moshimesh.model_id"):
        facts.append(f"model {model}")
    return ", ".join(facts)


def bar(frame: Frame, hop: Hop, cells: int) -> Text:
    """The hop's parts over the frame's time; what takes any time has a cell at least."""
    line = [(" ", "")] * cells
    per_cell = max(frame.root.end - frame.root.start, 1) / cells
    for part in PARTS:
        if part in hop.parts and hop.parts[part].ms > 0:
            first = (hop.parts[part].start - frame.root.start) / per_cell
            last = (hop.parts[part].end - frame.root.start) / per_cell
            begin = min(max(round(first), 0), cells - 1)
            stop = max(min(round(last), cells), begin + 1)
            line[begin:stop] = [MARKS[part]] * (stop - begin)
    return Text.assemble(*line[:cells])


def axis(total_ms: float, cells: int) -> Text:
    """Round numbers of milliseconds where they belong, each after its mark."""
    step = next(size * 10 ** power for power in range(-3, 6) for size in (1, 2, 5)
                if total_ms / (size * 10 ** power) <= max(cells // 8, 2))
    line = [" "] * (cells + 10)
    for number in range(int(total_ms / step) + 1):
        at = int(number * step / total_ms * cells)
        label = f"|{number * step:g}"
        line[at:at + len(label)] = label
    return Text("".join(line)[:cells])


def draw(frame: Frame, others: Sequence[Frame], path: Path, headline: str = "") -> None:
    """The waterfall as a picture, and below it the frame among the others of its call."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 6.4), height_ratios=(2.4, 1), layout="constrained")
    begin, end = frame.root.start, max(frame.ms, 0.001)
    for row, hop in enumerate(frame.hops):
        colour = HOP_COLOURS[hop.name]
        for part, span in hop.parts.items():
            looks = {"transit": {"color": "none", "edgecolor": colour, "hatch": "////", "linewidth": 0.6},
                     "queue": {"color": colour, "alpha": 0.3}, "compute": {"color": colour}}[part]
            top.barh(row, span.ms, left=(span.start - begin) / 1e6, height=0.6, **looks)
        facts = [f"{part} {hop.ms(part):.1f}" for part in PARTS if hop.ms(part) >= 0.05]
        if hop.span.attributes.get("moshimesh.tick"):
            facts.append(f"batch {_batch(hop.span.attributes)}, tick {hop.span.attributes['moshimesh.tick']}")
        left, right = (hop.span.start - begin) / 1e6, (hop.span.end - begin) / 1e6
        at_left, below = left > 0.42 * end, left <= 0.42 * end and right > 0.6 * end
        at = left - 0.008 * end if at_left else left if below else right + 0.008 * end
        top.text(at, row + (0.42 if below else 0), ", ".join(facts), fontsize="small",
                 va="center", ha="right" if at_left else "left", color="#333")
    if end > 0.6 * DEADLINE_MS:
        top.axvline(DEADLINE_MS, color="#c92a2a", linestyle="--", linewidth=1)
    top.set(yticks=range(len(frame.hops)), yticklabels=[hop.name for hop in frame.hops], xlim=(0, end * 1.02),
            xlabel="ms since the frame's last sample arrived (hatched: on its way, pale: waiting, full: computing)",
            title=headline or verdict(frame))
    top.set_ylim(len(frame.hops) - 0.3, -0.6)
    mine = [other for other in others if other.session == frame.session]
    bottom.plot([other.sequence for other in mine], [other.ms for other in mine], color="#333", linewidth=1,
                marker="." if len(mine) < 40 else "")
    bottom.scatter([frame.sequence], [frame.ms], color="#d9480f", zorder=3, label=f"frame {frame.sequence}")
    bottom.axhline(DEADLINE_MS, color="#c92a2a", linestyle="--", linewidth=1, label="80 ms: one frame")
    bottom.set(xlabel="frame of the call", ylabel="end to end, ms", ylim=(0, None))
    bottom.legend(loc="upper right", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _shown(attributes: Attributes, key: str) -> str:
    return str(attributes.get(key, ""))


def _batch(attributes: Attributes) -> str:
    """Batch size, and how full that was."""
    size, fill = attributes.get("moshimesh.batch_size"), attributes.get("moshimesh.batch_fill")
    return f"{size} ({fill:.0%})" if size is not None and isinstance(fill, float) else _shown(
        attributes, "moshimesh.batch_size")


def _of_batch(attributes: Attributes) -> str:
    tick = attributes.get("moshimesh.tick")
    return f"; batch of {attributes.get('moshimesh.batch_size')}, tick {tick}" if tick else ""
