"""The engines on the device and with the checkpoint that will serve, beside moshi's own: a part of `make bench-gpu`.

One after the other, because the weights of a 7B model and its rings for 32 callers do not fit twice on a GPU. Measured
by the clock on a GPU, which is fair where nothing else computes, and by the thread's CPU time on a CPU.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from rich.progress import Progress

from bench.capacity import step_clock, step_times_ms
from bench.lm_engine import BATCHES, PRECISIONS, Step, ours, reference
from bench.mimi_engine import our_frame, torch_frame
from bench.spread import spread
from services.codec.engine import build_engines
from services.lm.engine import LmEngine
from services.mesh.checkpoint import load_lm, load_mimi, resolve

Build = Callable[[int, ExitStack], Step]
"""A step of so many rows; what it needs ends with the stack."""
Times = dict[str, dict[str, dict[str, float]]]


@torch.no_grad()
def run(checkpoint: str, device: str, quick: bool, progress: Progress | None = None) -> dict[str, Any]:
    """`checkpoint_engines`: {"lm" and "mimi": {batch: {contender: ms of a step}}, ...}; the too large are missing."""
    torch.set_num_threads(1)
    info, repeats = resolve(checkpoint), 5 if quick else 15
    precisions = [name for name in PRECISIONS if device == "cpu" or name != "fp32"]
    task = progress.add_task("engines on the device", total=3 + len(precisions)) if progress else None
    times: dict[str, Times] = {part: {f"b{batch}": {} for batch in BATCHES} for part in ("lm", "mimi")}

    def measure(part: str, name: str, build: Build) -> None:
        for batch in BATCHES:
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                times[part][f"b{batch}"][name] = _step_ms(build, batch, device, repeats)
            gc.collect()
            torch.cuda.empty_cache()  # room for the next one; does nothing without a GPU
        if progress and task is not None:
            progress.advance(task)

    def torch_mimi(batch: int, stack: ExitStack) -> Step:
        stack.enter_context(mimi.streaming(batch))
        return torch_frame(mimi, batch)

    mimi = load_mimi(info, device)
    measure("mimi", "torch", torch_mimi)
    measure("mimi", "moshi-mesh", lambda batch, _: our_frame(build_engines(mimi, batch), batch))
    lm = load_lm(info, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    measure("lm", "lmgen", lambda batch, stack: reference(lm, batch, stack))
    lm.cpu()  # an engine has its own copy of the weights
    for name in precisions:
        measure("lm", name, lambda batch, _: ours(
            LmEngine(lm, batch, device=device, precision=name), sampled=False))  # noqa: B023
    return {"checkpoint_engines": {
        "checkpoint": checkpoint, "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(device), **times}}


def _step_ms(build: Build, batch: int, device: str, repeats: int) -> dict[str, float]:
    with ExitStack() as stack:
        step = build(batch, stack)

        def whole_step() -> None:
            step()
            if device != "cpu":
                torch.cuda.synchronize(device)

        return spread(step_times_ms(whole_step, repeats, step_clock(device)))
