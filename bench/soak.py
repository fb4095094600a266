"""`make soak`: whether anything grows in a mesh in whose doors callers come and go, and whose engines are killed.

    python -m bench.soak [--callers 2] [--duration 60m | --quick]

Callers at every door come, speak and go beside some that talk the whole time, and replicas are killed and started again
(harness/comings.py). Counted of each process: memory, files, sockets, threads and the tasks of its event loop; of the
mesh: slots, Redis keys, and what its invariants say. What counts is the growth in the second half of the time: by then
every buffer and pool has its full size. A replica that is killed begins anew, so the growth of codec and lm is that of
the first ones, which are not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import moshimesh

matplotlib.use("Agg")
import numpy as np
import psutil
import redis
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.load import seconds
from harness.comings import Comings
from harness.load import PIECE_S, Figures, load, read_speech
from harness.local_mesh import LocalMesh
from harness.recordings import read_recording
from harness.scraping import scrape, value

OUT = Path("out/soak.json")
SPEECH = np.frombuffer(read_recording(Path("samples/demo.wav")), np.int16)[:72_000] / np.float32(32768)
DOORS = 5  # each has a caller who comes and goes
SAMPLES = 300  # of what each process holds
QUICK_S = 600.0
FLAT_PERCENT, FLAT_S = 1.0, 3600.0  # of a process's memory an hour; below an hour its slope is noise
QUIET_S = 8.0  # until all that calls have held must be back
SETTLED = 0.5  # share of the time after which nothing should grow any more
COUNTS = ("files", "sockets", "threads", "tasks")
OURS = ("gateway", "codec", "lm")
WATCHED = (*OURS, "redis")
VIOLATED, OVERLOADED = "is violated", "overload level 3"  # in lines of the log


class Watched:
    """What a mesh's processes hold: before the calls, and at moments (s) during them."""

    def __init__(self, mesh: LocalMesh) -> None:
        self._mesh, self._began = mesh, time.monotonic()
        self._processes = {name: psutil.Process(mesh.processes[name].child.pid)  # type: ignore[union-attr]
                           for name in WATCHED}
        self.at_s: list[float] = []
        self.held: dict[str, list[tuple[float, int, int, int, int]]] = {name: [] for name in WATCHED}
        """By process: MB, and COUNTS."""

    async def look(self) -> None:
        """Count now."""
        tasks = {name: await _tasks(self._mesh, name) for name in WATCHED}
        self.at_s.append(time.monotonic() - self._began)
        for name, process in self._processes.items():
            with process.oneshot():
                self.held[name].append((process.memory_info().rss / 1e6, process.num_fds(),
                                        len(process.net_connections()), process.num_threads(), tasks[name]))

    def facts(self, name: str) -> dict[str, float]:
        """What became of one process; growth is the slope of its memory once settled."""
        settled, held = int(len(self.at_s) * SETTLED), np.array(self.held[name])
        per_hour = float(np.polyfit(self.at_s[settled:], held[settled:, 0], 1)[0] * 3600)
        middle = float(np.median(held[settled:, 0]))
        facts = {"begin_mb": float(held[0, 0]), "settled_mb": float(held[settled, 0]), "end_mb": float(held[-1, 0]),
                 "mb_per_hour": per_hour, "percent_per_hour": 100 * per_hour / middle}
        for column, what in enumerate(COUNTS, 1):
            facts |= {f"{what}_before": int(held[0, column]), f"{what}_most_settled": int(held[settled:, column].max()),
                      f"{what}_end": int(held[-1, column])}
        return facts


async def _tasks(mesh: LocalMesh, name: str) -> int:
    """Of a process's event loop; 0 for one that has none."""
    return int(value(await scrape(mesh, name), "moshimesh_process_tasks")) if name in mesh.metrics_ports else 0


@dataclass
class Soaked:
    """What a soak has found."""

    figures: Figures | None
    """Of those that talked the whole time; None without any."""
    watched: Watched
    calls: dict[str, int]
    failures: dict[str, int]
    kills: int
    slots_taken: int
    """At the end, when nobody calls any more."""
    redis_keys_before: int
    """Of those that do not expire by themselves."""
    redis_keys_end: int
    violations: int
    overloads: int
    """How often the gateway began to refuse new calls, since nearly all frames were late: a call may fail of that."""


def problems(found: Soaked, duration_s: float) -> list[str]:
    """What is not as it should be."""
    grown = [f"{name} grows by {percent:.1f} % of its memory an hour" for name in OURS
             if duration_s >= FLAT_S and (percent := found.watched.facts(name)["percent_per_hour"]) > FLAT_PERCENT]
    said = {f"{found.slots_taken} slots are taken": found.slots_taken,
            f"Redis has {found.redis_keys_end} lasting keys, {found.redis_keys_before} before":
                found.redis_keys_end > found.redis_keys_before,
            f"{found.violations} invariants were violated": found.violations}
    return [*grown, *(text for text, wrong in said.items() if wrong)]


async def soak(options: argparse.Namespace, progress: Progress | None = None) -> Soaked:
    """The calls, and what is held meanwhile."""
    heard: Counter[str] = Counter()

    def hear(name: str, line: str) -> None:
        heard.update(what for what in (VIOLATED, OVERLOADED) if what in line)

    async with LocalMesh(options.checkpoint, options.device, slots=options.callers + DOORS, replicas=2, metrics=True,
                         gateway_flags=["--grace-s", "1", "--longest-call-s", str(2 * options.duration)],
                         on_line=hear) as mesh:
        figures: Figures | None = None
        watched, over = Watched(mesh), asyncio.Event()
        comings = Comings(mesh, SPEECH)
        with redis.Redis.from_url(mesh.redis_url) as store:
            keys_before = sum(store.ttl(key) < 0 for key in store.scan_iter())
            await watched.look()

            async def watch() -> None:
                while True:
                    await asyncio.sleep(options.duration / SAMPLES)
                    await watched.look()

            watching, coming = asyncio.create_task(watch()), asyncio.create_task(comings.until(over))
            try:
                if options.callers:
                    _, figures = await load(mesh.target, options.callers, 1.0, options.duration,
                                            read_speech(options.wav), progress, PIECE_S)
                else:
                    await asyncio.sleep(options.duration)
                over.set()
                await coming
            finally:
                watching.cancel()
                coming.cancel()
            taken = await _slots_taken(mesh)
            await asyncio.sleep(QUIET_S)  # what has expired is gone, and sockets have been closed
            await watched.look()
            keys_end = sum(store.ttl(key) < 0 for key in store.scan_iter())
    return Soaked(figures, watched, dict(comings.calls), dict(comings.failures), comings.kills, taken, keys_before,
                  keys_end, heard[VIOLATED], heard[OVERLOADED])


async def _slots_taken(mesh: LocalMesh) -> int:
    """How many of the mesh's slots are not back within QUIET_S."""
    async with moshimesh.connect(mesh.target) as client:
        for _ in range(round(QUIET_S / 0.5)):
            info = await client.info()
            if info.slots_free == info.slots_total:
                return 0
            await asyncio.sleep(0.5)
    return int(info.slots_total - info.slots_free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/talker")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--callers", type=int, default=2, help="that talk the whole time; 0 for none")
    parser.add_argument("--duration", type=seconds, default="60m")
    parser.add_argument("--quick", action="store_true", help="ten minutes")
    parser.add_argument("--wav", type=Path, default=Path("samples"))
    options = parser.parse_args()
    options.duration = min(options.duration, QUICK_S) if options.quick else options.duration
    console = Console()
    with Progress(console=console) as progress:
        found = asyncio.run(soak(options, progress))
    processes = {name: {**found.watched.facts(name), "mb": [round(held[0], 1) for held in found.watched.held[name]]}
                 for name in WATCHED}
    OUT.parent.mkdir(exist_ok=True)
    facts = {key: value for key, value in vars(found).items() if key not in ("figures", "watched")}
    OUT.write_text(json.dumps({"callers": options.callers, "duration_s": options.duration,
                               "figures": found.figures and vars(found.figures), **facts, "processes": processes},
                              indent=1) + "\n")
    table = Table("process", "MB begin", "settled", "at the end", "% per hour", *COUNTS)
    for name, held in processes.items():
        table.add_row(name, *(f"{held[key]:.1f}" for key in ("begin_mb", "settled_mb", "end_mb", "percent_per_hour")),
                      *(f"{held[f'{what}_before']} to {held[f'{what}_end']}" for what in COUNTS))
        plt.plot(np.array(found.watched.at_s) / 60, np.array(found.watched.held[name])[:, 0] - held["settled_mb"],
                 label=name)
    plt.xlabel("minutes")
    plt.ylabel("MB more than when settled")
    plt.legend()
    plt.savefig(OUT.with_suffix(".png"), dpi=110)
    console.print(table)
    console.print(f"{sum(found.calls.values())} calls came and went, {sum(found.failures.values())} failed "
                  f"{found.failures or ''}; {found.kills} replicas were killed; at the end {found.slots_taken} slots "
                  f"were taken, Redis had {found.redis_keys_end} lasting keys ({found.redis_keys_before} before), "
                  f"{found.violations} invariants were violated; figures in {OUT}, chart in {OUT.with_suffix('.png')}")
    if wrong := problems(found, options.duration):
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
