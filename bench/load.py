"""`python -m bench.load`: live callers talk to a running mesh, and how long each of their frames took.

What a caller does and what its latency means is in harness/load.py.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from harness.load import FRAME_S, Caller, figures, load, read_speech


def write_csv(people: Sequence[Caller], path: Path) -> None:
    """One row per caller."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["caller", "frames", "p50_ms", "p95_ms", "p99_ms", "max_ms", "skipped", "error"])
        for caller in people:
            one = figures([caller])
            rows.writerow([caller.number, len(caller.latency_ms), *(f"{ms:.2f}" for ms in (
                one.p50_ms, one.p95_ms, one.p99_ms, one.max_ms)), caller.skipped, caller.error])


def seconds(text: str) -> float:
    """`20ms`, `30s`, `2m` or a plain number of seconds."""
    number = text.rstrip("ms")
    return float(number) * {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0}[text[len(number):]]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--target", default="localhost:50050", help="the gateway, host:port")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--ramp", type=seconds, default="5s", help="over how long the callers come")
    parser.add_argument("--duration", type=seconds, default="30s", help="how long all of them talk")
    parser.add_argument("--piece", type=seconds, default="80ms",
                        help="pieces in which a microphone hands out audio; below 80 ms, frames end when the mesh "
                             "would like, to within half a piece")
    parser.add_argument("--wav", type=Path, default=Path("samples"), help="a WAV, or a folder of them")
    parser.add_argument("--csv", type=Path, default=Path("out/load.csv"), help="one row per caller")
    options = parser.parse_args()
    if not 0 < options.piece <= FRAME_S:
        parser.error("--piece must be more than 0 and at most 80ms")
    console = Console()
    with Progress(console=console) as progress:
        people, result = await load(options.target, options.callers, options.ramp, options.duration,
                                    read_speech(options.wav), progress, options.piece)
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    write_csv(people, options.csv)
    options.csv.with_suffix(".json").write_text(json.dumps(vars(result), indent=2) + "\n")
    table = Table("callers", "frames", "p50 ms", "p95 ms", "p99 ms", "max ms", "over 80 ms", "skipped", "failed calls")
    table.add_row(str(result.callers), str(result.frames), *(f"{ms:.1f}" for ms in (
        result.p50_ms, result.p95_ms, result.p99_ms, result.max_ms)), str(result.late), str(result.skipped),
        str(result.errors))
    console.print(table)
    for message in sorted({caller.error for caller in people if caller.error}):
        console.print(f"failed: {message}")
    console.print(f"Per caller: {options.csv}")


if __name__ == "__main__":
    asyncio.run(main())
