"""How many live callers this machine serves, and where their time goes.

Capacity: the most concurrent callers, each speaking at real pace at a phase of its own, for whom p99 of the frame
latency stays under 80 ms and nothing is skipped. The ceiling: for how many callers the engines alone, called in this
process, could step in time. The load generator runs on the same machine and takes its share of the cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.progress import Progress

from harness.load import FRAME_S, PIECE_S, Caller, Figures, load, read_speech
from harness.local_mesh import LocalMesh

MOST_CALLERS = 192
FRAME_MS = FRAME_S * 1000
# A load that does not hold is tried again: a minute of other work on a shared machine is not the mesh's limit.
TRIES = 2
WARM_STEPS = 5  # an engine may have to prepare its first ones: graphs are captured, traces optimised


@dataclass(frozen=True)
class Usage:
    """What a load took: a frame's length by its computations, and of each process of the mesh CPU in cores and resident
    (and GPU) memory in MB.
    """

    real_time_factor: float
    cores: dict[str, float]
    memory_mb: dict[str, float]


def device_memory_mb(device: str) -> dict[str, float]:
    """Memory in use on a GPU, by all processes; nothing on a CPU."""
    if device == "cpu":
        return {}
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return {device: (total - free) / 1e6}


async def loaded(mesh: LocalMesh, callers: int, seconds: float, speech: Sequence[bytes], progress: Progress | None,
                 piece_s: float = FRAME_S) -> tuple[list[Caller], Figures, Usage]:
    """A load, and what it took."""
    processes = {name: psutil.Process(p.child.pid) for name, p in mesh.processes.items() if p.child}
    before = {name: sum(p.cpu_times()[:2]) for name, p in processes.items()}
    began = time.monotonic()
    people, figures = await load(mesh.target, callers, min(3.0, 0.05 * callers), seconds, speech, progress, piece_s)
    elapsed = time.monotonic() - began
    cores = {name: (sum(p.cpu_times()[:2]) - before[name]) / elapsed for name, p in processes.items()}
    rss_mb = {name: p.memory_info().rss / 1e6 for name, p in processes.items()}
    return people, figures, Usage(real_time_factor(people), cores, rss_mb | device_memory_mb(mesh.device))


async def capacity(mesh: LocalMesh, speech: Sequence[bytes], seconds: float, piece_s: float,
                   progress: Progress | None = None) -> tuple[int, list[dict[str, Any]]]:
    """The most callers for whom the mesh holds, by doubling, then halving the step; and every load that was tried."""
    tried: list[dict[str, Any]] = []

    async def holds(callers: int) -> bool:
        for _ in range(TRIES):
            _, figures, usage = await loaded(mesh, callers, seconds, speech, progress, piece_s)
            tried.append({**vars(figures), "piece_ms": piece_s * 1000, "holds": figures.holds, **vars(usage)})
            await asyncio.sleep(0.5)  # the slots come back
            if figures.holds:
                return True
        return False

    good, bad = 0, 8
    while bad <= MOST_CALLERS and await holds(bad):
        good, bad = bad, bad * 2
    while bad - good > max(1, good // 16):
        middle = (good + bad) // 2
        if await holds(middle):
            good = middle
        else:
            bad = middle
    return good, tried


def ceiling(checkpoint: str, device: str, repeats: int) -> tuple[int, dict[int, dict[str, float]]]:
    """How many callers the engines alone could step in 80 ms, and ms per step by callers and engine.

    An engine has one thread, so none may take longer than 80 ms; together they have that on every core, or on the GPU.
    """
    import torch

    from services.codec.engine import build_engines
    from services.lm.engine import LmEngine
    from services.lm.sampling import Sampling
    from services.mesh.checkpoint import load_lm, load_mimi, resolve

    torch.set_num_threads(1)
    lanes = (psutil.cpu_count() or 1) if device == "cpu" else 1
    clock = step_clock(device)
    info = resolve(checkpoint)
    times: dict[int, dict[str, float]] = {}
    callers = 8
    while callers <= 2 * MOST_CALLERS:
        encoder, decoder = build_engines(load_mimi(info, device), callers)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        lm = LmEngine(load_lm(info, dtype=dtype), callers, device=device)
        rows = list(range(callers))
        for row in rows:
            encoder.open(row)
            decoder.open(row)
            lm.open(row, Sampling(seed=row))
        noise = np.random.default_rng(0)
        pcm = noise.standard_normal((callers, encoder.facts.samples_per_frame), dtype=np.float32) * 0.1
        codes = noise.integers(0, encoder.facts.cardinality, (callers, encoder.facts.codebooks))
        times[callers] = {"encode": median_ms(lambda: encoder.step(rows, pcm), repeats, clock),  # noqa: B023
                          "lm": median_ms(lambda: lm.step(rows, codes), repeats, clock),  # noqa: B023
                          "decode": median_ms(lambda: decoder.step(rows, codes), repeats, clock)}  # noqa: B023
        if sum(times[callers].values()) > lanes * FRAME_MS or max(times[callers].values()) > FRAME_MS:
            break
        callers *= 2
    sizes = sorted(times)
    last = max((size for size in range(1, sizes[-1] + 1) if _fits(size, sizes, times, lanes)), default=0)
    return last, times


def _fits(size: int, sizes: Sequence[int], times: dict[int, dict[str, float]], lanes: int) -> bool:
    each = [float(np.interp(size, sizes, [times[s][engine] for s in sizes])) for engine in ("encode", "lm", "decode")]
    return max(each) <= FRAME_MS and sum(each) <= lanes * FRAME_MS


def step_clock(device: str) -> Callable[[], float]:
    """For steps. On a CPU the thread's own clock, which is wall time on a core without other users."""
    return time.thread_time if device == "cpu" else time.perf_counter


def step_times_ms(step: Callable[[], object], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Of each of `repeats` steps."""
    taken = []
    for _ in range(WARM_STEPS + repeats):
        began = clock()
        step()
        taken.append((clock() - began) * 1000)
    return taken[WARM_STEPS:]


def median_ms(step: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Time of a step."""
    return float(np.median(step_times_ms(step, repeats, clock)))


def real_time_factor(people: Sequence[Caller]) -> float:
    """Length of a frame by what its computations took, median over all frames; below 1 no caller can be served."""
    computed_ms = [sum(hop.compute_ms for hop in hops) for caller in people for hops in caller.hops.values()]
    return FRAME_MS / float(np.median(computed_ms)) if computed_ms else 0.0


def split(people: Sequence[Caller]) -> dict[str, dict[str, float]]:
    """p50 and p99 in ms of each hop's waiting and computing, and of what is neither: the mesh's overhead."""
    parts: dict[str, list[float]] = {"overhead": []}
    for caller in people:
        for sequence, hops in caller.hops.items():
            for hop in hops:
                parts.setdefault(f"{hop.hop} queue", []).append(hop.queue_ms)
                parts.setdefault(f"{hop.hop} compute", []).append(hop.compute_ms)
            parts["overhead"].append(caller.latency_ms[sequence] - sum(hop.queue_ms + hop.compute_ms for hop in hops))
    return {name: {"p50_ms": float(np.percentile(values, 50)), "p99_ms": float(np.percentile(values, 99))}
            for name, values in parts.items()}


async def reference(checkpoint: str, device: str, speech: bytes, seconds: float) -> Figures:
    """moshi.server's one caller, with the number of threads that serves it best."""
    from bench.reference_server import one_caller, reference_server  # Opus, which not every machine has

    tried = []
    for threads in sorted({1, psutil.cpu_count() or 1}):
        async with reference_server(checkpoint, device, threads) as port:
            await one_caller(port, speech, 1.0)  # warm
            tried.append(await one_caller(port, speech, seconds))
    return min(tried, key=lambda figures: figures.p99_ms)


@contextlib.contextmanager
def shown(progress: Progress | None, what: str) -> Iterator[None]:
    """Show that something runs whose duration is not known."""
    task = progress.add_task(what, total=None) if progress else None
    yield
    if progress and task is not None:
        progress.update(task, total=1, completed=1)


async def run(checkpoint: str, device: str, wav: Path, quick: bool, progress: Progress | None = None) -> dict[str, Any]:
    """One repeat of parts (b) and (c)."""
    speech, seconds = read_speech(wav), 6.0 if quick else 20.0
    with shown(progress, "moshi.server, one caller"):
        beside = await reference(checkpoint, device, speech[0], seconds)
    with shown(progress, "the engines alone"):
        most, step_ms = await asyncio.to_thread(ceiling, checkpoint, device, 10 if quick else 40)
    async with LocalMesh(checkpoint, device, slots=MOST_CALLERS) as mesh:
        await load(mesh.target, 4, 0.5, 1.0, speech)  # warm
        held, tried = await capacity(mesh, speech, seconds, FRAME_S, progress)
        aligned, tried_aligned = await capacity(mesh, speech, seconds, PIECE_S, progress)
        splits = []
        for share in (0.0, 0.25, 0.5, 0.9):
            people, figures, usage = await loaded(mesh, max(1, round(held * share)), seconds, speech, progress)
            splits.append({"share": share, **vars(figures), **vars(usage), "parts": split(people)})
    half = next(row for row in splits if row["share"] == 0.5)["parts"]["overhead"]
    return {"capacity_callers": held, "capacity_aligned_callers": aligned,
            "capacity_reference_callers": int(beside.p99_ms < FRAME_MS),
            "capacity_ceiling_callers": most, "overhead_p50_ms": half["p50_ms"], "overhead_p99_ms": half["p99_ms"],
            "reference": vars(beside), "step_ms": step_ms, "loads": tried + tried_aligned, "splits": splits}
