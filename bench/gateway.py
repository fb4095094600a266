"""What the gateway itself costs: CPU time per caller and frame, over engines that compute nothing.

CPU time, not latency, because the machine is shared: callers per core = 80 ms / CPU time of one frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
from rich.progress import Progress

from harness.load import FRAME_S, PIECE_S, Figures, load, read_speech
from harness.null_mesh import NullMesh

CALLERS = 80  # about half of what one core is meant to carry, so that callers share messages as they would


async def measure(callers: int, seconds: float, wav: Path, progress: Progress | None = None, piece_s: float = FRAME_S
                  ) -> tuple[Figures, dict[str, float]]:
    """Figures of the load, and CPU time in ms per caller's frame of gateway and null services."""
    async with NullMesh(slots=callers) as mesh:
        processes = {name: psutil.Process(mesh.processes[name].child.pid)  # type: ignore[union-attr]
                     for name in ("gateway", "codec")}
        await load(mesh.target, 8, 0.5, 1.0, read_speech(wav))  # warm
        before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
        people, figures = await load(mesh.target, callers, 1.0, seconds, read_speech(wav), progress, piece_s)
        after = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    frames = sum(len(caller.latency_ms) for caller in people)
    return figures, {name: (after[name] - before[name]) * 1000 / frames for name in before}


async def run(wav: Path, quick: bool, progress: Progress | None = None) -> dict[str, Any]:
    """One repeat: the gateway's callers per core, and what the null services took meanwhile."""
    seconds = 5.0 if quick else 15.0
    figures, cpu_ms = await measure(CALLERS, seconds, wav, progress)
    _, aligned_cpu_ms = await measure(CALLERS, seconds, wav, progress, PIECE_S)
    return {"gateway_callers_per_core": FRAME_S * 1000 / cpu_ms["gateway"],
            "gateway_aligned_callers_per_core": FRAME_S * 1000 / aligned_cpu_ms["gateway"],
            "cpu_ms_per_frame": cpu_ms, "figures": vars(figures)}
