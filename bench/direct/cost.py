"""What events cost the gateway: its CPU time with and without them, over engines that compute nothing."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from harness.load import FRAME_S, load, read_speech
from harness.null_mesh import NullMesh
from services.gateway.turns.detector import Detector
from services.gateway.turns.table import SpeechTable

CALLERS, TURN_S, PAIRS = 40, 3.0, 12
CODEBOOKS, ENTRIES = 8, 2048  # Moshi's


class SwitchedMesh(NullMesh):
    """Its gateway computes events or not (switched_gateway.py)."""

    async def start_process(self, name: str, command: Any) -> None:
        """With another main module for the gateway."""
        await super().start_process(name, ["bench.direct.switched_gateway" if word == "services.gateway" else word
                                           for word in command])


def step_us(frames: int = 20_000) -> float:
    """CPU time of the detector's own step, with random codes."""
    rng = np.random.default_rng(0)
    detector = Detector(SpeechTable(rng.integers(-60, 60, CODEBOOKS * ENTRIES).astype(np.int8).tobytes(), ENTRIES),
                        (3, 0), 1)
    codes = rng.integers(ENTRIES, size=(frames, 2 * CODEBOOKS)).tolist()
    began = time.process_time()
    for number, row in enumerate(codes):
        detector.step(number, row[:CODEBOOKS], [3, *row[CODEBOOKS:]])
    return (time.process_time() - began) * 1e6 / frames


async def run(wav: Path) -> dict[str, Any]:
    """Callers whose number stays the same, and the gateway's share of a core, with events and without in turns of
    seconds: the machine changes its speed within minutes.
    """
    async with SwitchedMesh(slots=CALLERS + 8) as mesh:
        child = mesh.processes["gateway"].child
        assert child is not None
        gateway = psutil.Process(child.pid)
        calling = asyncio.create_task(load(
            mesh.target, CALLERS, 1.0, TURN_S * (2 * PAIRS + 2), read_speech(wav)))
        await asyncio.sleep(TURN_S)
        shares: list[float] = []
        for _ in range(2 * PAIRS):
            began, used = time.monotonic(), sum(gateway.cpu_times()[:2])
            await asyncio.sleep(TURN_S)
            shares.append((sum(gateway.cpu_times()[:2]) - used) / (time.monotonic() - began))
            gateway.send_signal(signal.SIGUSR2)
        await calling
    told, silent = np.array(shares[::2]), np.array(shares[1::2])
    frame_ms = float(np.median(silent)) * FRAME_S * 1000 / CALLERS
    own_us = step_us()
    return {"event_cpu_cost": round(float(np.median(told / silent)) - 1, 4),
            "event_cpu_cost_spread": np.round(np.quantile(told / silent, (0.25, 0.75)) - 1, 4).tolist(),
            "event_step_us": round(own_us, 1), "event_step_share": round(own_us / 1000 / frame_ms, 4),
            "gateway_cpu_ms_per_frame": round(frame_ms, 4)}
