"""`make soak`: whether memory stays what it is during long calls.

    python -m bench.soak [--callers 4] [--duration 30m]

Live callers talk to a mesh of their own for the whole time. What counts is the growth after the first tenth of it: by
then every buffer has its full size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import psutil
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.load import seconds
from harness.load import PIECE_S, Figures, load, read_speech
from harness.local_mesh import LocalMesh

OUT = Path("out/soak.json")
SAMPLES = 300  # of each process's memory
SETTLED = 0.1  # share of the time after which nothing should grow any more


@dataclass
class Memory:
    """Resident memory of the mesh's processes in MB: before the calls, and at moments (s) during them."""

    before_mb: dict[str, float]
    at_s: list[float] = field(default_factory=list)
    mb: dict[str, list[float]] = field(default_factory=dict)

    def facts(self, name: str) -> dict[str, float]:
        """What became of one process."""
        settled, mb = int(len(self.at_s) * SETTLED), self.mb[name]
        per_hour = float(np.polyfit(self.at_s[settled:], mb[settled:], 1)[0] * 3600)
        return {"before_mb": self.before_mb[name], "settled_mb": mb[settled], "end_mb": mb[-1], "mb_per_hour": per_hour}


async def soak(options: argparse.Namespace, progress: Progress) -> tuple[Figures, Memory]:
    """The calls, and the memory meanwhile."""
    async with LocalMesh(options.checkpoint, options.device, slots=options.callers) as mesh:
        processes = {name: psutil.Process(p.child.pid) for name, p in mesh.processes.items() if p.child}
        memory = Memory({name: process.memory_info().rss / 1e6 for name, process in processes.items()})
        began = time.monotonic()

        async def watch() -> None:
            while True:
                memory.at_s.append(time.monotonic() - began)
                for name, process in processes.items():
                    memory.mb.setdefault(name, []).append(process.memory_info().rss / 1e6)
                await asyncio.sleep(options.duration / SAMPLES)

        watching = asyncio.create_task(watch())
        try:
            _, figures = await load(mesh.target, options.callers, 1.0, options.duration, read_speech(options.wav),
                                    progress, PIECE_S)
        finally:
            watching.cancel()
    return figures, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/talker")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--duration", type=seconds, default="30m")
    parser.add_argument("--wav", type=Path, default=Path("samples"))
    options = parser.parse_args()
    console = Console()
    with Progress(console=console) as progress:
        figures, memory = asyncio.run(soak(options, progress))
    processes = {name: memory.facts(name) for name in memory.mb}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"callers": options.callers, "duration_s": options.duration, "figures": vars(figures),
                               "processes": processes}, indent=1) + "\n")
    table = Table("process", "MB before", "settled", "at the end", "MB per hour")
    for name, facts in processes.items():
        table.add_row(name, *(f"{value:.1f}" for value in facts.values()))
        plt.plot(np.array(memory.at_s) / 60, np.array(memory.mb[name]) - facts["settled_mb"], label=name)
    plt.xlabel("minutes")
    plt.ylabel("MB more than when settled")
    plt.legend()
    plt.savefig(OUT.with_suffix(".png"), dpi=110)
    console.print(table)
    console.print(f"{options.callers} callers: p99 {figures.p99_ms:.1f} ms, {figures.skipped} frames skipped, "
                  f"{figures.errors} calls failed; figures in {OUT}, chart in {OUT.with_suffix('.png')}")


if __name__ == "__main__":
    main()
