"""`make profile`: what a tick spends its time on, and what limits the number of callers.

    python -m bench.profile [--checkpoint FOLDER] [--device cpu] [--callers 1,8,32] [--quick]

A tick is one step of each engine for all callers: encode, language model, decode. The engines are the services' own,
in this process, on the same checkpoint:

- how long each takes is measured on the engine as it serves (traced on a CPU, a CUDA graph on a GPU);
- what that is spent on can't be seen in there, so the parts' shares come from the same network run operator by
  operator, under torch.profiler, less what that costs more;
- launch is what the operators of a step would cost if they computed nothing: their number times the cost of an
  operator on one element, measured here. On a GPU it is the time in which no kernel runs. The rest is compute: on a
  CPU that is also the reading of weights, which few callers pay for as much as many;
- wait is what a batcher adds: handing a step to the engine's thread and back.

The services contain no profiling code, so it costs nothing while it is not used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from bench.capacity import median_ms
from bench.profile_report import COPIES, OperatorCost, Stage, Tick, as_json, attribute, draw, show
from bench.ranges import Place, Ranges, device_ms, operators
from services.codec.engine import DecodeEngine, EncodeEngine, build_engines
from services.lm import sampler
from services.lm.engine import LmEngine
from services.lm.graphed import GraphedNetwork
from services.lm.network import Draws
from services.lm.sampling import Sampling
from services.mesh.batching import Batcher
from services.mesh.checkpoint import CheckpointError, check_device, load_lm, load_mimi, resolve

HISTORY = 250  # frames that the callers have sent already: 20 s
CHAIN = 300  # operators whose cost is measured at once
Step = Callable[[], object]


class Engines:
    """The three engines of a checkpoint, with callers in the middle of their calls."""

    def __init__(self, checkpoint: str, device: str, slots: int) -> None:
        info = resolve(checkpoint)
        self.device, self.cuda = device, device.partition(":")[0] == "cuda"
        self.encoder, self.decoder = build_engines(load_mimi(info, device), slots)
        dtype = torch.bfloat16 if self.cuda else torch.float32
        self.lm = LmEngine(load_lm(info, dtype=dtype), slots, device=device)
        for engine in (self.encoder, self.decoder, self.lm):
            engine.warm_up()
        for row in range(slots):
            self.encoder.open(row)
            self.decoder.open(row)
            self.lm.open(row, Sampling(seed=row))
        self.lm._line._line[:] = 0
        noise = np.random.default_rng(0)
        facts = self.encoder.facts
        self.pcm = noise.standard_normal((slots, facts.samples_per_frame), dtype=np.float32) * 0.1
        self.user = noise.integers(0, facts.cardinality, (slots, self.lm.facts.user_codebooks))
        self.own = noise.integers(0, facts.cardinality, (slots, self.decoder.facts.codebooks))

    def step(self, stage: str, callers: int) -> Step:
        """A step of the first rows."""
        rows = list(range(callers))
        if stage == "encode":
            return lambda: self.encoder.step(rows, self.pcm[:callers])
        if stage == "decode":
            return lambda: self.decoder.step(rows, self.own[:callers])

        def lm() -> None:
            self.lm._line.positions[:] = min(HISTORY, self.lm.facts.context_frames)  # stay there: a call of 20 s
            self.lm.step(rows, self.user[:callers])

        return lm

    def places(self, stage: str) -> list[Place]:
        """The functions whose time has a name. The stage's own step is `copies`: what none of the others is."""
        if stage == "lm":
            network = self.lm._network
            main, depth = "main transformer", "depth transformer"
            return [Place(self.lm, "step", COPIES), Place(network, "forward", main),
                    Place(network.temporal, "forward", main), Place(network.heads, "forward", main),
                    *(Place(step, "forward", depth) for step in network.depth), Place(network, "_draw", "sampling"),
                    Place(sampler, "noise", "sampling"), Place(sampler, "window_starts", "sampling")]
        engine = self.encoder if stage == "encode" else self.decoder
        half = engine._half
        names = {"_seanet": "convolutions", "_transformer": "transformer", "search": "quantizer",
                 "lookup": "quantizer", "_downsample": "convolutions", "_upsample": "convolutions"}
        return [Place(engine, "step", COPIES), Place(half, "forward", "past"),
                *(Place(module, "forward", label) for name, label in names.items()
                  if isinstance(module := getattr(half, name, None), nn.Module))]

    def eager(self, stage: str) -> Eager:
        """While it is entered, the engine's network runs operator by operator."""
        return Eager(self, stage)

    def insides(self, stage: str, ranges: Ranges) -> Recorded:
        """While it is entered, the recorded network is a range `network`."""
        return Recorded(self, stage, ranges)


class _Swapped:
    """Puts other functions where an engine keeps its recorded network, and takes them out again."""

    def __init__(self, engines: Engines, stage: str) -> None:
        self._engines, self._stage = engines, stage
        self._kept: Any = None

    def other(self, recorded: Any) -> Any:
        raise NotImplementedError

    def __enter__(self) -> None:
        engines = self._engines
        if self._stage == "lm":
            self._kept = engines.lm._generate
            engines.lm._generate = self.other(self._kept)
        else:
            runner = self._engine()._run
            self._kept = dict(runner._steps)
            runner._steps = {size: self.other(step) for size, step in self._kept.items()}

    def __exit__(self, *_: object) -> None:
        if self._stage == "lm":
            self._engines.lm._generate = self._kept
        else:
            self._engine()._run._steps = self._kept

    def _engine(self) -> EncodeEngine | DecodeEngine:
        return self._engines.encoder if self._stage == "encode" else self._engines.decoder


class Eager(_Swapped):
    """The bare network, on the same weights and with the same state."""

    def other(self, recorded: Any) -> Any:
        if self._stage != "lm":
            return self._engine()._half
        lm = self._engines.lm
        if self._engines.cuda:  # the same shapes as in a graph, launched one by one
            return GraphedNetwork(lm._network, lm._rings, capture=lambda run: run)

        def generate(tokens: Any, rows: Any, positions: Any, draws: Draws, bends: None) -> Any:
            index = torch.from_numpy(rows)
            chosen = Draws(*(values.index_select(0, index) for values in draws))
            with torch.inference_mode():
                return lm._network(torch.from_numpy(tokens), lm._rings, index,
                                   torch.from_numpy(positions).index_select(0, index), chosen).numpy()

        return generate


class Recorded(_Swapped):
    """The recorded network, in a range."""

    def __init__(self, engines: Engines, stage: str, ranges: Ranges) -> None:
        super().__init__(engines, stage)
        self._ranges = ranges

    def other(self, recorded: Any) -> Any:
        def ranged(*arguments: Any) -> Any:
            with self._ranges.named("network"):
                return recorded(*arguments)

        return ranged


@dataclass
class Settings:
    """How thoroughly."""

    repeats: int
    eager_repeats: int
    rounds: int
    clock: Callable[[], float] = field(default=time.thread_time)


def operator_cost(clock: Callable[[], float], repeats: int = 50) -> OperatorCost:
    """Measured on a chain of the kinds that a step has most of, on one element."""

    def chain(x: Tensor) -> Tensor:
        for _ in range(CHAIN // 5):
            x = torch.softmax(functional.silu(torch.mm(x, x)), dim=-1).view(1, 1) + x
        return x

    x = torch.zeros(1, 1)
    recorded = torch.jit.trace(chain, x, check_trace=False)
    with torch.inference_mode(), optimized_execution(False):
        return OperatorCost(median_ms(lambda: chain(x), repeats, clock) / CHAIN,
                            median_ms(lambda: recorded(x), repeats, clock) / CHAIN)


def stage(engines: Engines, name: str, callers: int, cost: OperatorCost, settings: Settings) -> Stage:
    """One engine at so many callers, without its waits."""
    step = engines.step(name, callers)
    ms = median_ms(step, settings.repeats, settings.clock)
    labels = {place.label for place in engines.places(name)}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if engines.cuda else [])]
    ranges = Ranges(settings.clock)
    with engines.eager(name):
        eager = engines.step(name, callers)
        eager()
        with ranges.at(engines.places(name)):
            for _ in range(settings.eager_repeats):
                eager()
            with profile(activities=activities) as profiled:
                seconds = dict(ranges.seconds)  # of the runs that were not profiled
                eager()
    found = operators(profiled.events(), labels)
    eager_ms = {label: taken * 1000 / settings.eager_repeats for label, taken in seconds.items()
                if label != COPIES}
    if engines.cuda:
        with profile(activities=activities) as profiled:
            for _ in range(settings.eager_repeats):
                step()
            torch.cuda.synchronize(engines.device)
        kernels, copies = (value / settings.eager_repeats for value in device_ms(profiled.events()))
        copies = min(copies, ms)
        return Stage(ms, copies, 0.0, attribute(ms - copies, eager_ms, found, cost, kernels))
    inside = Ranges(settings.clock)
    with engines.insides(name, inside), inside.at([Place(_owner(engines, name), "step", COPIES)]):
        for _ in range(settings.repeats):
            step()
    outside = inside.seconds[COPIES] / sum(inside.seconds.values())
    return Stage(ms, ms * outside, 0.0, attribute(ms * (1 - outside), eager_ms, found, cost))


def _owner(engines: Engines, name: str) -> Any:
    return {"encode": engines.encoder, "lm": engines.lm, "decode": engines.decoder}[name]


class _Stepper:
    """What a batcher drives."""

    def __init__(self, step: Step, slots: int) -> None:
        self.slots, self._step = slots, step

    def open(self, row: int, settings: None) -> Iterator[None]:
        yield from ()

    def step(self, rows: Sequence[int], payloads: Sequence[int]) -> Sequence[int]:
        self._step()
        return payloads


async def wait_ms(name: str, step: Step, callers: int, rounds: int) -> float:
    """What a service's batcher adds to a step when all its callers' frames come at once.

    The first quartile: this is wall time, and what another process takes of it is not the batcher's.
    """
    batcher: Batcher[None, int, int] = Batcher(name, _Stepper(step, callers))
    queues: list[asyncio.Queue[int | None]] = [asyncio.Queue() for _ in range(callers)]  # one frame each at most
    answers: asyncio.Queue[tuple[float, float]] = asyncio.Queue()

    async def payloads(queue: asyncio.Queue[int | None]) -> AsyncIterator[int]:
        while (payload := await queue.get()) is not None:
            yield payload

    async def caller(number: int) -> None:
        with batcher.lease(str(number), None) as slot:
            async for answer in slot.serve(payloads(queues[number])):
                timing = answer.timing
                stepped_s = (timing.finished_unix_nanos - timing.started_unix_nanos) / 1e9
                answers.put_nowait((time.perf_counter(), stepped_s))

    running = [asyncio.create_task(caller(number)) for number in range(callers)]
    taken = []
    try:
        for _ in range(rounds):
            began = time.perf_counter()
            for queue in queues:
                queue.put_nowait(0)
            done = [await answers.get() for _ in range(callers)]
            taken.append((max(end for end, _ in done) - began - max(stepped for _, stepped in done)) * 1000)
        for queue in queues:
            queue.put_nowait(None)
        await asyncio.gather(*running)
    finally:
        await batcher.close()
    return max(statistics.quantiles(taken)[0], 0.0)


def run(checkpoint: str, device: str, callers: Sequence[int], quick: bool, progress: Progress) -> dict[str, Any]:
    """Every number of the report. Raises CheckpointError and ValueError."""
    check_device(device)
    torch.set_num_threads(1)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would complain about a GPU that is not there
    task = progress.add_task("loading", total=1 + 4 * len(callers))
    engines = Engines(checkpoint, device, max(callers))
    settings = Settings(*(10, 3, 10) if quick else (60, 15, 60))
    if engines.cuda:
        settings.clock = time.perf_counter
    cost = operator_cost(settings.clock)
    progress.advance(task)
    ticks = []
    for people in callers:
        stages = {}
        for name in ("encode", "lm", "decode"):
            progress.update(task, description=f"{name}, {people} callers")
            stages[name] = stage(engines, name, people, cost, settings)
            progress.advance(task)
        progress.update(task, description=f"waits, {people} callers")
        for name, found in stages.items():
            waited = asyncio.run(wait_ms(name, engines.step(name, people), people, settings.rounds))
            stages[name] = Stage(found.ms, found.copies_ms, waited, found.parts)
        progress.advance(task)
        ticks.append(Tick(people, stages))
    return {"checkpoint": checkpoint, "device": device, "quick": quick, "operator_us": {
        "recorded": cost.real_ms * 1000, "eager": cost.eager_ms * 1000}, "ticks": ticks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/talker")
    parser.add_argument("--device", default="cpu", help="torch device: cpu, cuda ...")
    parser.add_argument("--callers", default="1,8,32", help="numbers of callers, separated by commas")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: under a minute")
    parser.add_argument("--out", type=Path, default=Path("out/profile.json"), help="the picture lies beside it")
    options = parser.parse_args()
    try:
        callers = sorted({int(number) for number in options.callers.split(",")})
    except ValueError:
        callers = []
    if not callers or not all(1 <= number <= 256 for number in callers):
        parser.error(f"--callers must be numbers from 1 to 256, separated by commas, got {options.callers!r}")
    console = Console()
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as progress:
        try:
            results = run(options.checkpoint, options.device, callers, options.quick, progress)
        except (CheckpointError, ValueError) as error:
            raise SystemExit(f"profile: {error}") from None
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(as_json(results), indent=1) + "\n")
    draw(results["ticks"], options.out.with_suffix(".png"))
    show(results["ticks"], console)
    console.print("Totals are the engines' as they serve; the parts' shares are those of the same network run operator "
                  f"by operator.\nFigures in {options.out}, chart in {options.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
