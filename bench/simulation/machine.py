"""One machine, frame by frame: three batchers and a gateway that share its cores.

Every frame goes through gateway, encoder, language model, decoder and gateway again. A batcher serves all frames that
wait when it becomes idle in one tick; while more threads want to run than there are cores, all run slower alike.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

FRAME_MS = 80.0
# CPU ms of a step by its rows, of the bundled checkpoint's engines (bench.capacity.ceiling measures them: CPU time of
# the thread, medians of 20, rings full).
STEP_MS: Mapping[str, Mapping[int, float]] = {
    "encode": {1: 2.93, 2: 4.14, 4: 5.04, 8: 6.64, 16: 10.68, 32: 22.04},
    "lm": {1: 2.35, 2: 3.30, 4: 3.65, 8: 4.43, 16: 5.37, 32: 7.82},
    "decode": {1: 3.19, 2: 3.37, 4: 4.78, 8: 6.91, 16: 10.54, 32: 21.05}}
GATEWAY_MS = FRAME_MS / 121  # of a frame: docs/benchmarks.md, callers per gateway core
# Of a frame in each of the three batchers' processes, beside the step: gRPC, the event loop. From the CPU that the mesh
# took with 8 callers (docs/benchmarks.md: 1.03 cores), less all of the above.
SERVICE_MS = 0.38
CALLER_MS = 0.5  # of a frame in the load generator, which shares the cores: its own CPU, measured with null engines


@dataclass(frozen=True)
class Machine:
    """What a machine has and takes."""

    cores: int = 2
    step_ms: Mapping[str, Mapping[int, float]] = field(default_factory=lambda: STEP_MS)
    gateway_ms: float = GATEWAY_MS
    service_ms: float = SERVICE_MS
    caller_ms: float = CALLER_MS

    def work_ms(self, server: str, rows: int) -> float:
        """CPU time that a server needs for so many frames at once."""
        if server == "caller":
            return self.caller_ms / 2 * rows
        if server == "gateway":  # a frame comes by four times
            return self.gateway_ms / 4 * rows
        costs = self.step_ms[server]
        sizes = sorted(costs)
        step = float(np.interp(rows, sizes, [costs[size] for size in sizes])) if rows <= sizes[-1] else (
            costs[sizes[-1]] * rows / sizes[-1])
        return step + self.service_ms * rows


WAY = ("caller", "gateway", "encode", "gateway", "lm", "gateway", "decode", "gateway", "caller")


@dataclass(frozen=True)
class Load:
    """What came of a number of callers."""

    callers: int
    p50_ms: float
    p99_ms: float
    cores: float
    """CPU of the mesh, without the callers'."""

    @property
    def holds(self) -> bool:
        """Whether p99 keeps the deadline."""
        return self.p99_ms < FRAME_MS


def run(machine: Machine, callers: int, seconds: float = 10.0, seed: int = 1) -> Load:
    """Callers at random phases, each with a frame every 80 ms."""
    chance = random.Random(seed)
    end_ms = seconds * 1000
    arrivals = [(chance.uniform(0, FRAME_MS), caller) for caller in range(callers)]
    heapq.heapify(arrivals)
    waiting: dict[str, deque[tuple[float, int]]] = {name: deque() for name in dict.fromkeys(WAY)}
    running: dict[str, tuple[float, list[tuple[float, int]]]] = {}  # server: work left, and its frames (begun, stage)
    now, cpu_ms, latencies = 0.0, 0.0, list[float]()
    while now < end_ms:
        speed = min(1.0, machine.cores / len(running)) if running else 1.0
        done_at = min((now + left / speed for left, _ in running.values()), default=float("inf"))
        following = min(done_at, arrivals[0][0])
        for name, (left, frames) in list(running.items()):
            used = (following - now) * speed
            cpu_ms += used if name != "caller" else 0.0
            running[name] = left - used, frames
        now = following
        while arrivals[0][0] <= now:
            at, caller = heapq.heappop(arrivals)
            heapq.heappush(arrivals, (at + FRAME_MS, caller))
            waiting["caller"].append((at, 0))
        for name in [name for name, (left, _) in running.items() if left <= 1e-9]:
            for begun, stage in running.pop(name)[1]:
                if stage + 1 < len(WAY):
                    waiting[WAY[stage + 1]].append((begun, stage + 1))
                elif begun > end_ms / 10:  # the first ones meet an empty machine
                    latencies.append(now - begun)
        for name, queue in waiting.items():
            if queue and name not in running:
                single = name in ("caller", "gateway")  # event loops take one thing after another
                frames = [queue.popleft()] if single else [queue.popleft() for _ in range(len(queue))]
                running[name] = machine.work_ms(name, len(frames)), frames
    return Load(callers, float(np.percentile(latencies, 50)), float(np.percentile(latencies, 99)), cpu_ms / end_ms)


def capacity(machine: Machine, seeds: Sequence[int] = (1, 2, 3)) -> int:
    """The most callers for whom p99 keeps the deadline, with the median seed."""
    good, bad = 0, 4
    while _holds(machine, bad, seeds):
        good, bad = bad, bad * 2
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _holds(machine, middle, seeds) else (good, middle)
    return good


def _holds(machine: Machine, callers: int, seeds: Sequence[int]) -> bool:
    return sorted(run(machine, callers, seed=seed).p99_ms for seed in seeds)[len(seeds) // 2] < FRAME_MS
