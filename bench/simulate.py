"""`python -m bench.simulate`: what a fleet does, before money is spent on one. Writes docs/simulation.md and its plots.

Seeded; every figure comes from bench/simulation, whose costs are those measured in docs/benchmarks.md, and from the
roofline of a GPU.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.simulation.fleet import Figures, Fleet, Policy, day, steady, waits_ms
from bench.simulation.machine import Machine, capacity, run

PAGE = Path("docs/simulation.md")
IMAGES = Path("docs/img")
CALL_S = 300.0
# Live callers at random phases: the load table of docs/benchmarks.md holds at 30 and not at 31. That is the best of its
# repeats; their median is 17, on a machine that is shared with others.
MEASURED_CALLERS = 30
SEEDS = (1, 2, 3)
# An H100 and the 7B model (DESIGN of the project, "A GPU"): GB of weights, GB of keys and values of a full window.
GPU_GB_PER_S, GPU_GB = 3350.0, 80.0
PRECISIONS = {"bf16": (14.75, 1.573), "bf16, 8-bit KV": (14.75, 0.787), "int8, 8-bit KV": (7.37, 0.787)}
TIMES_THE_FLOOR = 2.0  # what a well captured graph reaches; published: 6 at one row


def error_of_capacity() -> tuple[int, float]:
    """Callers that the simulated machine holds, and the error against the measured one."""
    simulated = capacity(Machine())
    return simulated, abs(simulated - MEASURED_CALLERS) / MEASURED_CALLERS


async def error_against_one_machine() -> dict[str, Any]:
    """For `make fleet-check`."""
    simulated, error = error_of_capacity()
    return {"simulated": simulated, "measured": MEASURED_CALLERS, "error": round(error, 3)}


def tick_ms(precision: str, rows: int) -> float:
    """The floor of a GPU's tick: weights and every row's window, streamed once."""
    weights, window = PRECISIONS[precision]
    return (weights + window * rows) / GPU_GB_PER_S * 1000


def rows_that_fit(precision: str) -> int:
    """Beside the weights, in 80 GB."""
    weights, window = PRECISIONS[precision]
    return int((GPU_GB - weights) / window)


def mean(policy: Policy, callers: Callable[[float], float], hours: float, begin: int) -> dict[str, float]:
    """Figures of some seeds, averaged."""
    runs = [Fleet(policy, callers, CALL_S, seed, begin).run(hours * 3600) for seed in SEEDS]

    def average(value: Callable[[Figures], float]) -> float:
        return float(np.mean([value(figures) for figures in runs]))

    return {"calls": average(lambda f: f.calls), "waited": average(lambda f: 100 * f.waited_share),
            "gave_up": average(lambda f: 1000 * f.gave_up / max(f.calls, 1)), "p99_s": average(waits_ms),
            "lost": average(lambda f: 1000 * f.lost / max(f.calls, 1)), "fill": average(lambda f: 100 * f.fill),
            "at_once": average(lambda f: f.most_moved_at_once), "packed": average(lambda f: f.moved_by_packing),
            "drained": average(lambda f: f.moved_by_drain)}


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Markdown."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
            *("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |"
              for row in rows), ""]


COLUMNS = ("waited", "p99_s", "gave_up", "lost", "fill")
HEAD = ("callers that wait, %", "p99 of the wait, s", "give up, per 1000", "lost, per 1000", "slots used, %")


def rows_of(values: Sequence[Any], policy: Callable[[Any], Policy], callers: int, hours: float) -> list[list[Any]]:
    """A table's rows: a policy for each value, on a day with a lost replica every two hours."""
    rows = []
    for value in values:
        found = mean(policy(value), day(callers, hours), hours, max(2, math.ceil(callers / 10 / 6)))
        rows.append([value, *(found[column] for column in COLUMNS)])
    return rows


def subsets(replicas: int, most: int, seed: int = 1) -> dict[str, float]:
    """Gateways that know some of the replicas each, with three of four slots taken: refusals and imbalance."""
    chance = np.random.default_rng(seed)
    slots, calls = 8, int(replicas * 6)
    gateways = max(2, calls // 40)
    known = [chance.choice(replicas, size=min(most, replicas), replace=False) for _ in range(gateways)]
    used, refused = np.zeros(replicas, int), 0
    for call in range(calls):
        mine = known[call % gateways]
        free = mine[used[mine] < slots]
        if not len(free):
            refused += 1
            continue
        two = chance.choice(free, size=min(2, len(free)), replace=False)
        used[two[np.argmin(used[two])]] += 1
    per_replica = np.bincount(np.concatenate(known), minlength=replicas)
    return {"gateways": gateways, "tunnels": gateways * min(most, replicas), "polls": float(per_replica.mean()),
            "most_polls": int(per_replica.max()), "refused": 1000 * refused / calls, "spread": float(used.std()),
            "full": 100 * float((used == slots).mean()), "unknown": int((per_replica == 0).sum())}


def plots(by_threshold: list[list[Any]], quick: bool) -> None:
    """docs/img/simulation-*.png."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6))
    left.plot([row[0] for row in by_threshold], [row[1] for row in by_threshold], "o-", label="callers that wait, %")
    left.plot([row[0] for row in by_threshold], [row[4] for row in by_threshold], "s-", label="lost, per 1000")
    left.plot([row[0] for row in by_threshold], [100 - row[5] for row in by_threshold], "^-", label="slots unused, %")
    left.set_xlabel("threshold: calls for each replica of 8 slots")
    left.legend()
    hours = 3.0 if quick else 6.0
    for policy, name in ((Policy(), "as in the manifests"), (Policy(down_window_s=60, down_every_s=15), "hasty")):
        series = Fleet(policy, day(300, hours), CALL_S, 1, 5).run(hours * 3600).series
        right.plot([at / 3600 for at, *_ in series], [there * policy.slots for _, _, there, _ in series],
                   label=f"slots, {name}")
    right.plot([at / 3600 for at, *_ in series], [held for _, held, _, _ in series], label="calls", color="black", lw=1)
    right.set_xlabel("hours of a day that is compressed")
    right.legend()
    figure.tight_layout()
    figure.savefig(IMAGES / "simulation-scaling.png", dpi=110)
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(5.5, 3.6))
    sizes = range(4, 37, 4)
    loads = [run(Machine(), callers, 10.0) for callers in sizes]
    axes.plot(sizes, [load.p50_ms for load in loads], "o-", label="p50 ms")
    axes.plot(sizes, [load.p99_ms for load in loads], "s-", label="p99 ms")
    axes.axhline(80, color="gray", lw=1)
    axes.axvline(MEASURED_CALLERS, color="gray", lw=1, ls="--", label="measured capacity")
    axes.set_xlabel("callers on 2 cores")
    axes.legend()
    figure.tight_layout()
    figure.savefig(IMAGES / "simulation-machine.png", dpi=110)
    plt.close(figure)


def page(quick: bool) -> list[str]:
    """docs/simulation.md."""
    callers, hours = (100, 3.0) if quick else (300, 6.0)
    lossy = {"loss_every_s": 7200.0}
    simulated, error = error_of_capacity()
    by_threshold = rows_of((4, 5, 6, 7, 7.5, 8), lambda value: Policy(threshold=value, **lossy), callers, hours)
    by_load = rows_of((30, 60, 180, 600, 1200), lambda value: Policy(load_s=value, **lossy), callers, hours)
    by_window = rows_of((15, 60, 300, 600, 1800), lambda value: Policy(down_window_s=value, **lossy), callers, hours)
    packing = []
    for name, policy in (("any replica", Policy(emptiest=False, defragment=False)),
                         ("the emptiest", Policy(defragment=False)), ("the emptiest, and calls packed", Policy())):
        found = mean(policy, day(callers, hours), hours, 5)
        packing.append([name, found["at_once"], found["drained"], found["packed"], found["fill"]])
    sizes = []
    for size in (10, 100, 1000, 10_000) if quick else (10, 100, 1000, 10_000, 100_000):
        found = mean(Policy(defragment=size <= 1000, **lossy), steady(size), 1.0 if size <= 1000 else 0.25,
                     max(2, math.ceil(size / 6)))
        sizes.append([size, max(2, math.ceil(size / 6)), *(found[column] for column in COLUMNS)])
    known = []
    for replicas in (10, 100, 1000, 10_000):
        for most in (8, 32, 64, replicas):
            if most <= replicas and (most < replicas or replicas <= 1000):
                found = subsets(replicas, most)
                known.append([replicas, most if most < replicas else "all", found["gateways"], found["tunnels"],
                              found["most_polls"], found["refused"], found["full"], found["unknown"]])
    IMAGES.mkdir(exist_ok=True, parents=True)
    plots(by_threshold, quick)
    gpu = [[name, rows_that_fit(name), *(TIMES_THE_FLOOR * tick_ms(name, rows) for rows in (1, 8, 32)),
            TIMES_THE_FLOOR * tick_ms(name, rows_that_fit(name))] for name in PRECISIONS]
    return [
        "# The fleet, simulated", "",
        "Written by `python -m bench.simulate`; do not edit. Calls and replicas are simulated as the gateway and the",
        "manifests treat them: the better of two replicas drawn at random, a line, drains, lost replicas, the",
        "autoscaler's rules. Calls last 300 s on average, most less and some much more; a caller in line",
        "gives up after",
        f"60 s. Means of {len(SEEDS)} seeds.", "",
        "## One machine", "",
        f"Three batchers and a gateway on 2 cores, frame by frame, with the measured costs of steps: **{simulated}**",
        f"callers at random phases keep p99 under 80 ms; measured were {MEASURED_CALLERS} (docs/benchmarks.md): an",
        f"error of {error:.0%}. That is the best of that page's repeats, whose loads it lists; their median",
        "is 17, on a",
        "machine that others used as well, which is not simulated.", "",
        "![Latency by callers](img/simulation-machine.png)", "",
        "## Thresholds of `deploy/k8s/components/autoscaling`", "",
        f"A day of {callers} callers at its height and a tenth of that at night, compressed into {hours:.0f} hours, so",
        "that the load rises faster than any real day's; a replica of 8 slots is lost every two hours, and a new one",
        "takes calls after 180 s.", "", "![Scaling](img/simulation-scaling.png)", "",
        "**`threshold`: calls held and waiting for each replica of 8 slots.** At 6 about one caller of a",
        "thousand waits,",
        "at 7 ten, and from 7.5 on calls of a lost replica find no room in time; below 6 more GPUs buy next",
        "to nothing.", "",
        *table(("threshold", *HEAD), by_threshold),
        "**How long a new pod takes.** The threshold's reserve is what callers live on meanwhile: with a volume of",
        "weights (components/checkpoint-cache) it is 1 to 3 minutes, with 15 GB to fetch first 10 and more.", "",
        *table(("seconds until it takes calls", *HEAD), by_load),
        "**`stabilizationWindowSeconds` of scale-down.** Short ones follow every dip, and the next wave",
        "waits. 300 s would do",
        "on this day; 600 cost two slots of a hundred more and outlast a dip of ten minutes. More than that",
        "only costs.", "",
        *table(("window s", *HEAD), by_window),
        "**What a scale-down takes** (components/scale-down). Nobody loses a call in any of these; the fewer move at",
        "once, the less the others' frames wait for rows that are rebuilt.", "",
        *table(("it takes", "most calls moved at once", "moved by drains", "moved by packing", "slots used, %"),
               packing),
        "**The guard of 60 ms on the p99 tick** is three quarters of a frame: on a GPU, whose floor is",
        "below, a tick at",
        "twice the floor stays under 48 ms with every row that fits, so the guard only fires for a device",
        "that is shared",
        "or slow.", "",
        "**40 calls for a gateway**: 121 fill a core (docs/benchmarks.md); at a third of a core's capacity a frame",
        "rarely waits for another one, and a gateway that is lost makes 40 callers reconnect, not 120.", "",
        "## By size", "",
        "Steady callers, a replica lost every two hours, from an empty fleet: an hour, and a quarter of one",
        "from 10 000",
        "callers on, in which it fills.", "",
        *table(("callers", "replicas at first", *HEAD), sizes),
        "## A gateway of a large fleet (`--most-replicas`)", "",
        "Three of four slots are taken; a gateway for every 40 calls. Polls are those that one replica answers in a",
        "second, at most. Refused: calls of 1000 that found every replica of their gateway full, and had to wait.", "",
        *table(("replicas", "known", "gateways", "tunnels", "most polls/s", "refused, per 1000", "replicas full, %",
                "replicas nobody knows"), known),
        "With 32, nothing is refused that all would have taken, and a replica answers at most 14 polls a",
        "second, however",
        "many gateways there are; of a thousand replicas 11 are known to nobody, with 64 none. So: 32 for hundreds of",
        "replicas, 64 for thousands. With 8, one call of fifteen waits beside free slots.", "",
        "## A GPU", "",
        f"The 7B model on an H100: ms of a tick at {TIMES_THE_FLOOR:.0f} times the floor, full windows. Not measured.",
        "", *table(("precision", "rows that fit 80 GB", "1 row", "8 rows", "32 rows", "all that fit"), gpu)]


def filled(lines: Sequence[str]) -> str:
    """The page's text, with paragraphs in lines of one length."""
    blocks = "\n".join(lines).strip().split("\n\n")
    return "\n\n".join(block if block.startswith(("#", "|", "!")) else textwrap.fill(block, 120, break_long_words=False,
                       break_on_hyphens=False) for block in blocks) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller fleet: half a minute")
    PAGE.write_text(filled(page(parser.parse_args().quick)))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
