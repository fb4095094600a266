"""What the figures of `make profile` mean: shares, the bottleneck, tables and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.ranges import Operators

FRAME_MS = 80.0
COPIES = "copies"
COLOURS = {"encode": "#2f7ed8", "lm": "#d9480f", "decode": "#2b8a3e", COPIES: "#8a8f98", "wait": "#e0c341"}
SHORT = {"encode": "Mimi's encoder", "lm": "the language model", "decode": "Mimi's decoder"}


@dataclass(frozen=True)
class OperatorCost:
    """What an operator costs that computes nothing, in ms: called from Python, and as the engines run them."""

    eager_ms: float
    real_ms: float


@dataclass(frozen=True)
class Part:
    """A part of a step as it serves; `eager_ms` is what was measured on the bare network."""

    ms: float
    compute_ms: float
    launch_ms: float
    operators: float
    eager_ms: float


@dataclass(frozen=True)
class Stage:
    """One engine's part of a tick."""

    ms: float
    """The engine's step: its parts, and copies."""
    copies_ms: float
    wait_ms: float
    parts: dict[str, Part]

    @property
    def compute_ms(self) -> float:
        return sum(part.compute_ms for part in self.parts.values())

    @property
    def launch_ms(self) -> float:
        return sum(part.launch_ms for part in self.parts.values())


@dataclass(frozen=True)
class Tick:
    """One step of each engine for so many callers."""

    callers: int
    stages: dict[str, Stage]

    @property
    def ms(self) -> float:
        return sum(stage.ms + stage.wait_ms for stage in self.stages.values())

    @property
    def wait_ms(self) -> float:
        return sum(stage.wait_ms for stage in self.stages.values())


def attribute(real_ms: float, eager_ms: dict[str, float], found: dict[str, Operators], cost: OperatorCost,
              kernels_ms: float | None = None) -> dict[str, Part]:
    """The parts of a step that takes `real_ms`, from those of the bare network.

    On a CPU an operator of the bare network costs more by a known amount, so that is taken off before the shares are
    read. With `kernels_ms`, of a GPU, the shares are those of the kernels' time, and launch is when none of them runs.
    """
    none = Operators(0, 0.0)
    counts = {label: found.get(label, none).count for label in eager_ms}
    if kernels_ms is not None:
        kernel = {label: found.get(label, none).device_ms for label in eager_ms}
        compute = scaled(kernel, min(kernels_ms, real_ms))
        launch = scaled({label: float(count) for label, count in counts.items()}, real_ms - min(kernels_ms, real_ms))
    else:
        extra = cost.eager_ms - cost.real_ms
        share = scaled({label: max(ms - counts[label] * extra, 0.1 * ms) for label, ms in eager_ms.items()}, real_ms)
        launch = {label: min(counts[label] * cost.real_ms, ms) for label, ms in share.items()}
        compute = {label: ms - launch[label] for label, ms in share.items()}
    return {label: Part(compute[label] + launch[label], compute[label], launch[label], counts[label], ms)
            for label, ms in eager_ms.items()}


def scaled(weights: dict[str, float], total: float) -> dict[str, float]:
    """The total, shared out by weight; evenly when there is none."""
    whole = sum(weights.values())
    return {name: total * (weight / whole if whole else 1 / len(weights)) for name, weight in weights.items()}


def bottleneck(tick: Tick) -> tuple[str, str, str]:
    """The bottleneck (Mimi, LM or wait), which part of it, and what kind of work: compute, launch, copies or wait."""
    mimi, lm = (sum(tick.stages[name].ms for name in names) for names in (("encode", "decode"), ("lm",)))
    if tick.wait_ms > max(mimi, lm):
        return "wait", max(tick.stages, key=lambda name: tick.stages[name].wait_ms), "wait"
    who, names = ("Mimi", ("encode", "decode")) if mimi > lm else ("LM", ("lm",))
    stages = [tick.stages[name] for name in names]
    parts = {f"{name}: {label}": part.ms for name in names for label, part in tick.stages[name].parts.items()}
    kinds = {"compute": sum(stage.compute_ms for stage in stages), "launch": sum(stage.launch_ms for stage in stages),
             "copies": sum(stage.copies_ms for stage in stages)}
    return who, max(parts, key=lambda name: parts[name]), max(kinds, key=lambda kind: kinds[kind])


def sentence(tick: Tick) -> str:
    """The bottleneck in one sentence."""
    who, part, kind = bottleneck(tick)
    people = _people(tick)
    if who == "wait":
        return (f"At {people} the bottleneck is waiting: {tick.wait_ms:.1f} of a tick's {tick.ms:.1f} ms are handing "
                f"steps to the engines' threads, most of it before {SHORT[part]}.")
    names = ("encode", "decode") if who == "Mimi" else ("lm",)
    stages = [tick.stages[name] for name in names]
    total = sum(stage.ms for stage in stages)
    of_kind = {"compute": sum(stage.compute_ms for stage in stages), "launch": sum(stage.launch_ms for stage in stages),
               "copies": sum(stage.copies_ms for stage in stages)}[kind]
    stage, _, label = part.partition(": ")
    words = {"compute": "compute, not launching operators", "launch": "launch: the overhead of calling operators, not "
             "what they compute", "copies": "copies: bringing numbers to the engine and back"}[kind]
    return (f"At {people} the bottleneck is {who} ({total:.1f} of a tick's {tick.ms:.1f} ms), most of all "
            f"{SHORT[stage]}'s {label} ({tick.stages[stage].parts[label].ms:.1f} ms); {of_kind / total:.0%} of it is "
            f"{words}.")


def _people(tick: Tick) -> str:
    return "1 caller" if tick.callers == 1 else f"{tick.callers} callers"


def as_json(results: dict[str, Any]) -> dict[str, Any]:
    """The report as out/profile.json has it."""
    ticks = {}
    for tick in results["ticks"]:
        who, part, kind = bottleneck(tick)
        ticks[str(tick.callers)] = {
            "tick_ms": tick.ms, "wait_ms": tick.wait_ms, "bottleneck": {"who": who, "part": part, "kind": kind},
            "sentence": sentence(tick), "stages": {name: {**asdict(found), "compute_ms": found.compute_ms,
                                                          "launch_ms": found.launch_ms}
                                                   for name, found in tick.stages.items()}}
    return {**results, "ticks": ticks,
            "method": "ms and copies_ms: the engine as it serves; the parts' shares: the same network run operator by "
                      "operator, less what that costs more; launch_ms: operators times the cost of one that computes "
                      "nothing (on a GPU: the time without a kernel)"}


def show(ticks: Sequence[Tick], console: Console) -> None:
    """The tables and the sentences."""
    for tick in ticks:
        table = Table("part", "ms", "share", "compute", "launch", "operators",
                      title=f"A tick of {_people(tick)}: {tick.ms:.1f} ms")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, found in tick.stages.items():
            table.add_row(name, f"{found.ms + found.wait_ms:.2f}", f"{(found.ms + found.wait_ms) / tick.ms:.0%}",
                          f"{found.compute_ms:.2f}", f"{found.launch_ms:.2f}",
                          f"{sum(part.operators for part in found.parts.values()):.0f}", style="bold")
            for label, part in found.parts.items():
                table.add_row(f"  {label}", f"{part.ms:.2f}", f"{part.ms / tick.ms:.0%}", f"{part.compute_ms:.2f}",
                              f"{part.launch_ms:.2f}", f"{part.operators:.0f}")
            for label, ms in ((COPIES, found.copies_ms), ("wait", found.wait_ms)):
                table.add_row(f"  {label}", f"{ms:.2f}", f"{ms / tick.ms:.0%}", "", "", "", style="dim")
        console.print(table)
        console.print(sentence(tick) + "\n")


def draw(ticks: Sequence[Tick], path: Path) -> None:
    """Two bars for each number of callers: by part, and by kind of work."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 1.6 + 1.5 * len(ticks)), layout="constrained")
    kinds = {"compute": "#495057", "launch": "#f08c00", COPIES: COLOURS[COPIES], "wait": COLOURS["wait"]}
    named: set[str] = set()

    def piece(at: float, width: float, left: float, label: str, **looks: Any) -> float:
        axes.barh(at, width, left=left, height=0.38, edgecolor="white", **looks,
                  label=None if label in named else label)
        named.add(label)
        return left + width

    for row, tick in enumerate(ticks):
        left = 0.0
        for name, found in tick.stages.items():
            for shade, (label, part) in enumerate(found.parts.items()):
                left = piece(row - 0.2, part.ms, left, f"{name}: {label}", color=COLOURS[name],
                             alpha=(1.0, 0.7, 0.45, 0.25)[min(shade, 3)])
        total = {"compute": sum(found.compute_ms for found in tick.stages.values()),
                 "launch": sum(found.launch_ms for found in tick.stages.values()),
                 COPIES: sum(found.copies_ms for found in tick.stages.values()), "wait": tick.wait_ms}
        for label in (COPIES, "wait"):
            left = piece(row - 0.2, total[label], left, label, color=kinds[label])
        left = 0.0
        for label, ms in total.items():
            left = piece(row + 0.2, ms, left, label, color=kinds[label], hatch="///" if label == "launch" else "")
        axes.text(left, row, f" {tick.ms:.1f} ms", va="center")
    most = max(tick.ms for tick in ticks)
    if most > 0.7 * FRAME_MS:
        axes.axvline(FRAME_MS, color="#c92a2a", linestyle="--", linewidth=1, label="80 ms: one frame")
    axes.set(xlabel="ms of one tick (upper bar: by part; lower bar: by kind of work)",
             yticks=range(len(ticks)), yticklabels=[_people(tick) for tick in ticks],
             xlim=(0, max(most * 1.1, FRAME_MS * 1.05 if most > 0.7 * FRAME_MS else 0)), title=sentence(ticks[-1]))
    axes.title.set_fontsize("small")
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
