"""`make soak`: whether memory stays what it is during long calls.

    python -m bench.soak [--callers 4] [--duration 30m]

Live callers talk to a mesh of their own for the whole time. What matters is the growth after the first tenth of it:
by then every buffer is as large as it gets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path

import matplotlib
import numpy as np
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.load import PIECE_S, load, read_speech, seconds
from scripts.local_mesh import LocalMesh

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OUT = Path("out/soak.json")
SAMPLES = 300  # of each process's memory
SETTLED = 0.1  # share of the time after which nothing should grow any more


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/talker")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--duration", type=seconds, default="30m")
    parser.add_argument("--wav", type=Path, default=Path("samples"))
    options = parser.parse_args()
    console = Console()
    at_s: list[float] = []
    rss_mb: dict[str, list[float]] = {}

    async def watch(processes: dict[str, psutil.Process]) -> None:
        began = time.monotonic()
        while True:
            at_s.append(time.monotonic() - began)
            for name, process in processes.items():
                rss_mb.setdefault(name, []).append(process.memory_info().rss / 1e6)
            await asyncio.sleep(options.duration / SAMPLES)

    async with LocalMesh(options.checkpoint, options.device, slots=options.callers) as mesh:
        processes = {name: psutil.Process(p.child.pid) for name, p in mesh.processes.items() if p.child}
        before_mb = {name: process.memory_info().rss / 1e6 for name, process in processes.items()}
        watching = asyncio.create_task(watch(processes))
        with Progress(console=console) as progress:
            _, figures = await load(mesh.target, options.callers, 1.0, options.duration, read_speech(options.wav),
                                    progress, PIECE_S)
        watching.cancel()
    settled = int(len(at_s) * SETTLED)
    table = Table("process", "MB before the calls", "MB settled", "MB at the end", "MB per hour since")
    result = {"callers": options.callers, "duration_s": options.duration, "figures": vars(figures), "processes": {}}
    for name, samples in rss_mb.items():
        per_hour = float(np.polyfit(at_s[settled:], samples[settled:], 1)[0] * 3600)
        facts = {"before_mb": before_mb[name], "settled_mb": samples[settled], "end_mb": samples[-1],
                 "mb_per_hour": per_hour}
        result["processes"][name] = facts
        table.add_row(name, *(f"{value:.1f}" for value in facts.values()))
        plt.plot(np.array(at_s) / 60, np.array(samples) - samples[settled], label=name)
    os.makedirs(OUT.parent, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    plt.xlabel("minutes")
    plt.ylabel("MB more than when settled")
    plt.legend()
    plt.savefig(OUT.with_suffix(".png"), dpi=110)
    console.print(table)
    console.print(f"{options.callers} callers: p99 {figures.p99_ms:.1f} ms, {figures.skipped} frames skipped, "
                  f"{figures.errors} calls failed; figures in {OUT}, chart in {OUT.with_suffix('.png')}")


if __name__ == "__main__":
    asyncio.run(main())
