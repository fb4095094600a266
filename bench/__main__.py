"""`make bench`: every figure of docs/benchmarks.md, measured in one run.

    python -m bench [--quick] [--only engines,doors] [--checkpoint ID --device cuda --out out/bench-gpu.json]

(a) engines alone, beside moshi's LMGen, torch Mimi and rustymimi on the same weights; (b) capacity, beside
moshi.server on the same checkpoint; (c) where a frame's time goes at 1 caller, 25 %, 50 % and 90 % of capacity.
Run it with nothing else running: capacity is about wall time. `make bench-gpu` has in place of (a), which is about the
CPU, the checkpoint's own engines on the device, beside moshi's.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import capacity, checkpoint_engines, door_costs, gateway, lm_engine, mimi_engine, mimi_service, report
from bench.spread import spread

PARTS = ("engines", "gateway", "doors", "capacity")
ON_DEVICE = "checkpoint"


def repeated(run: Callable[[], Any], repeats: int, keys: tuple[str, ...], detail: str) -> dict[str, Any]:
    """A part's figures over its repeats, and the last repeat in full."""
    runs = [asyncio.run(run()) for _ in range(repeats)]
    return {key: spread(run[key] for run in runs) for key in keys} | {detail: runs[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repeats: under 10 minutes")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run; the others keep their last figures")
    parser.add_argument("--checkpoint", default="checkpoints/talker")
    parser.add_argument("--device", default="cpu", help="torch device for the mesh and moshi.server")
    parser.add_argument("--wav", type=Path, default=Path("samples"))
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"),
                        help="figures; out/bench-gpu.json has its page in docs/benchmarks-gpu.md, and so on")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - {*PARTS, ON_DEVICE}:
        raise SystemExit(f"bench: --only knows {', '.join((*PARTS, ON_DEVICE))}, got {', '.join(sorted(unknown))}")
    quick, repeats = options.quick, 1 if options.quick else 3
    out: Path = options.out
    out.parent.mkdir(exist_ok=True)
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        if "engines" in parts:
            results |= lm_engine.run(quick, progress)
            results["mimi"] = mimi_engine.run(quick, progress)
            results["mimi_engine_vs_rustymimi"] = results["mimi"].pop("mimi_vs_rustymimi")
            results |= mimi_service.run(quick, progress)
        if ON_DEVICE in parts:
            results |= checkpoint_engines.run(options.checkpoint, options.device, quick, progress)
        out.write_text(json.dumps(results, indent=1) + "\n")  # an hour of work is not lost with the next part
        if "gateway" in parts:
            results |= repeated(lambda: gateway.run(options.wav, quick, progress), repeats,
                                ("gateway_callers_per_core", "gateway_aligned_callers_per_core"), "gateway")
        if "doors" in parts:
            results |= asyncio.run(door_costs.run(options.wav, quick, progress))
        if "capacity" in parts:
            keys = ("capacity_callers", "capacity_aligned_callers", "capacity_reference_callers",
                    "capacity_ceiling_callers", "overhead_p50_ms", "overhead_p99_ms")
            one = functools.partial(capacity.run, options.checkpoint, options.device, options.wav, quick, progress)
            results |= repeated(one, repeats, keys, "capacity")
    out.write_text(json.dumps(results, indent=1) + "\n")
    page = report.write(results, out.stem)
    console.print(f"figures in {out}, tables and charts in {page}")


if __name__ == "__main__":
    main()
