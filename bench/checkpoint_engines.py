"""The engines on the device and with the checkpoint that will serve, beside moshi's own: a part of `make bench-gpu`.

One after the other, because the weights of a 7B model and its rings for 32 callers do not fit twice on a GPU. On a GPU
by the clock, which is fair where nobody else computes; on a CPU by the CPU time of the thread.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from moshi.models.lm import LMGen
from moshi.utils.compile import no_compile
from rich.progress import Progress

from bench.lm_engine import BATCHES, PRECISIONS, ours, random_codes, spread
from bench.mimi_engine import noise, our_frame
from services.codec.engine import build_engines
from services.lm.engine import LmEngine
from services.lm.linear import Precision
from services.mesh.checkpoint import load_lm, load_mimi, resolve

WARM_STEPS = 5  # moshi's CUDA graphs and ours are captured in the first ones
Times = dict[str, dict[str, dict[str, float]]]


def run(checkpoint: str, device: str, quick: bool, progress: Progress | None = None) -> dict[str, Any]:
    """`checkpoint_engines`: {"lm" and "mimi": {batch: {contender: ms of a step}}, ...}; who does not fit is missing."""
    torch.set_num_threads(1)
    info, repeats = resolve(checkpoint), 5 if quick else 15
    on_gpu = torch.device(device).type == "cuda"
    precisions = [name for name in PRECISIONS if not (on_gpu and name == "fp32")]
    times: dict[str, Times] = {"lm": {}, "mimi": {}}
    task = progress.add_task("engines on the device", total=len(BATCHES)) if progress else None
    # In memory, for all that are built of them.
    weights = load_lm(info, dtype=torch.bfloat16 if on_gpu else torch.float32)
    with torch.no_grad():
        for batch in BATCHES:
            times["lm"][f"b{batch}"] = _those_who_fit({
                "lmgen": partial(_lmgen, info, device, batch, repeats),
                **{name: partial(_our_lm, weights, device, batch, repeats, name) for name in precisions}})
            times["mimi"][f"b{batch}"] = _those_who_fit({
                "torch": partial(_torch_mimi, info, device, batch, repeats),
                "moshi-mesh": partial(_our_mimi, info, device, batch, repeats)})
            if progress and task is not None:
                progress.advance(task)
    return {"checkpoint_engines": {
        "checkpoint": checkpoint, "device": torch.cuda.get_device_name(device) if on_gpu else "cpu", **times}}


def _lmgen(info: Any, device: str, batch: int, repeats: int) -> list[float]:
    lm = load_lm(info, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    generator = LMGen(lm, use_sampling=False)
    codes = torch.from_numpy(random_codes(1, batch, lm.card, lm.n_q - lm.dep_q)[0])[:, :, None].to(device)
    # On a CPU moshi only compiles what is outside of its layers, at the price of a compiler.
    with no_compile() if device == "cpu" else contextlib.nullcontext(), generator.streaming(batch):
        return _measured(lambda: generator.step(codes), device, repeats)


def _our_lm(weights: Any, device: str, batch: int, repeats: int, precision: Precision) -> list[float]:
    engine = LmEngine(weights, batch, device=device, precision=precision)
    return _measured(ours(engine, sampled=False), device, repeats)


def _torch_mimi(info: Any, device: str, batch: int, repeats: int) -> list[float]:
    mimi = load_mimi(info, device)
    pcm = torch.from_numpy(noise(batch, mimi.frame_size))[:, None].to(device)
    with mimi.streaming(batch):
        return _measured(lambda: mimi.decode(mimi.encode(pcm)), device, repeats)


def _our_mimi(info: Any, device: str, batch: int, repeats: int) -> list[float]:
    engines = build_engines(load_mimi(info, device), batch)
    return _measured(our_frame(engines, batch), device, repeats)


def _measured(step: Callable[[], object], device: str, repeats: int) -> list[float]:
    """ms of each step, once it is warm."""
    clock = time.thread_time if device == "cpu" else time.perf_counter
    taken = []
    for _ in range(WARM_STEPS + repeats):
        began = clock()
        step()
        if device != "cpu":
            torch.cuda.synchronize(device)
        taken.append((clock() - began) * 1000)
    return taken[WARM_STEPS:]


def _those_who_fit(contenders: dict[str, Callable[[], list[float]]]) -> dict[str, dict[str, float]]:
    """Each one's spread; what it has taken of the device is free again for the next."""
    found = {}
    for name, measure in contenders.items():
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            found[name] = spread(measure())
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without a GPU
    return found
