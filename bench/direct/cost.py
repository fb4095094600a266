"""What events cost the gateway: its CPU time per frame with and without them, over engines that compute nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.gateway import measure
from harness.null_mesh import NullMesh
from services.gateway.turns.detector import Detector
from services.gateway.turns.table import SpeechTable

CALLERS, SECONDS, PAIRS = 40, 10.0, 5
CODEBOOKS, ENTRIES = 8, 2048  # Moshi's


class SilentMesh(NullMesh):
    """Its gateway computes no events."""

    async def start_process(self, name: str, command: Any) -> None:
        """With another main module for the gateway."""
        await super().start_process(name, ["bench.direct.silent_gateway" if word == "services.gateway" else word
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
    """Pairs of runs, one after the other, in turns; the machine may be busy, so the median of their quotients."""
    pairs = []
    for _ in range(PAIRS):
        cpu_ms = []
        for mesh_of in (NullMesh, SilentMesh):
            _, figures = await measure(CALLERS, SECONDS, wav, mesh_of=mesh_of)
            cpu_ms.append(figures["gateway"])
        pairs.append(cpu_ms)
    own_us = step_us()
    return {"event_cpu_cost": round(float(np.median([told / silent - 1 for told, silent in pairs])), 4),
            "event_step_us": round(own_us, 1),  # what a busy machine blurs less than the pairs
            "event_step_share": round(own_us / 1000 / float(np.median([silent for _, silent in pairs])), 4),
            "gateway_cpu_ms_per_frame": [[round(ms, 4) for ms in pair] for pair in pairs]}
