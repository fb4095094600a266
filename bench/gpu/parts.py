"""What `bench/gpu/run.sh` measures in one process: python -m bench.gpu.parts --device cuda --out out/gpu

    (a) equal    the 7 B model's greedy tokens beside moshi's own loop
    (b) steps    the time of a step with full windows by rows and precision, beside LMGen and beside the floor
    (c) mimi     the time of a tick of the codec by rows

Each part's result is in out/gpu/PART.json as soon as it is known. The weights are random, of Moshi's own 7 B shape in
memory (--small: of a shape that a CPU can step); so are the histories, since what they hold costs nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from moshi.models import loaders
from moshi.models.lm import LMGen, LMModel
from moshi.utils.compile import no_compile

from bench.gpu.random_7b import SEVEN_B, SMALL, random_lm
from services.codec.engine import build_engines
from services.codec.precision import CodecPrecision
from services.lm.engine import LmEngine
from services.lm.gpus import gpu_named
from services.lm.linear import Precision, Unavailable
from services.lm.sampling import Sampling
from services.lm.selfcheck import ways
from services.lm.sizing import KvPrecision, size_of

ROWS = (1, 8, 32, 64, 84)
# The most important first: time may run out.
KINDS: tuple[tuple[Precision, KvPrecision], ...] = (
    ("bf16", "int8"), ("int8", "int8"), ("fp8", "int8"), ("int4", "int8"), ("bf16", "bf16"))
MIMI_KINDS: tuple[CodecPrecision, ...] = ("fp32", "tf32", "bf16")
GREEDY = Sampling(text_temperature=0, audio_temperature=0)
FRAMES = 30
ROOMY_BYTES = 120e9
"""Of a GPU that has room for the model as it was loaded beside an engine with its rings: copies across take seconds."""
Ints = np.ndarray[Any, np.dtype[np.int64]]


def codes(frames: int, rows: int, cardinality: int) -> Ints:
    """Of callers, [frames, rows, 8]."""
    return np.random.default_rng(0).integers(0, cardinality, (frames, rows, 8))


def free(device: str) -> None:
    """What was let go of, back to the device."""
    if device != "cpu":
        torch.cuda.empty_cache()


def moshis_tokens(lm: LMModel, heard: Ints, device: str) -> Ints:
    """What moshi's own loop draws greedily for one caller: [frames, 9]."""
    home = next(lm.parameters()).device
    generator = LMGen(lm.to(device), use_sampling=False)
    with torch.no_grad(), no_compile(), generator.streaming(1):
        found = [generator.step(torch.from_numpy(frame).to(device)[:, :, None]) for frame in heard]
    lm.to(home)
    return np.array([[-2] * 9 if step is None else step[0, :, 0].tolist() for step in found])


def equal(lm: LMModel, device: str) -> dict[str, Any]:
    """(a) How often the engine's next token is moshi's, where both have the same tokens before it.

    Two ways to add in bfloat16 round otherwise, and random weights have many near ties: what is wrong is equal once in
    a thousand.
    """
    heard = codes(FRAMES, 1, lm.card)
    expected = moshis_tokens(lm, heard, device)
    free(device)
    engine = LmEngine(lm, 1, device=device)
    line = engine._line
    made = line.generated(expected)
    engine.open(0, GREEDY)
    same = []
    for frame, right in zip(heard, made, strict=True):
        engine.step([0], frame)
        mine = line._line[0, : 1 + lm.dep_q, line.positions[0] % line._length].copy()
        same.append(mine[right >= 0] == right[right >= 0])
        line.amend(0, right)
    return {"frames": FRAMES, "equal_next_tokens": float(np.concatenate(same).mean()), "way": engine.way,
            "refused_ways": list(engine.refused_ways), "precision": engine.facts.precision}


def median_ms(step: Callable[[], object]) -> float:
    """Of up to 100 steps, for as long as two seconds."""
    for _ in range(3):
        step()
    times: list[float] = []
    began = time.monotonic()
    while not times or (time.monotonic() - began < 2 and len(times) < 100):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def steps(lm: LMModel, device: str, rows: tuple[int, ...], write: Callable[[list[dict[str, Any]]], None]) -> None:
    """(b) Every step ends with its tokens on the host."""
    results: list[dict[str, Any]] = []
    for precision, kv_precision in KINDS:
        try:
            results += steps_of(lm, device, rows, precision, kv_precision)
        except Unavailable as error:
            results.append({"precision": precision, "unavailable": str(error)})
        free(device)
        write(results)
        if (precision, kv_precision) == KINDS[0]:
            results += other_ways(lm, device, precision, kv_precision)
            free(device)
            results.append({"lmgen_rows": 1, "step_ms": lmgen_ms(lm, device)})
            free(device)
            write(results)


def steps_of(lm: LMModel, device: str, rows: tuple[int, ...], precision: Precision, kv_precision: KvPrecision
             ) -> list[dict[str, Any]]:
    """Of one kind of weights, keys and values."""
    gpu = gpu_named(torch.cuda.get_device_name(device)) if device != "cpu" else None
    size, most = size_of(lm, precision, kv_precision), max(rows)
    if device != "cpu":
        most = min(most, size.slots_in(torch.cuda.mem_get_info(device)[0], on_gpu=True))
    began = time.monotonic()
    engine = LmEngine(lm, most, device=device, precision=precision, kv_precision=kv_precision)
    built_s = time.monotonic() - began
    engine.warm_up()
    ready_s = time.monotonic() - began
    results = []
    for count in sorted({min(count, most) for count in rows}):
        took = step_ms(engine, count)
        result = {"precision": precision, "kv_precision": kv_precision, "rows": count, "step_ms": took,
                  "way": engine.way, "refused_ways": list(engine.refused_ways), "built_s": built_s, "ready_s": ready_s}
        if gpu is not None:
            floor_ms = size.floor_s(count, gpu.bytes_per_s) * 1e3
            result |= {"floor_ms": floor_ms, "times_the_floor": took / floor_ms}
        results.append(result)
    return results


def step_ms(engine: LmEngine, count: int) -> float:
    """Of so many rows with full windows."""
    for row in range(count):
        engine.open(row, Sampling(seed=row))
    for heard in codes(engine.facts.delay_frames + 2, count, engine.facts.cardinality):  # then all streams have tokens
        engine.step(range(count), heard)
    engine._line.positions[:] = engine.facts.context_frames + 100  # full windows, whatever is in them
    heard = codes(1, count, engine.facts.cardinality)[0]
    return median_ms(lambda: engine.step(range(count), heard))


def other_ways(lm: LMModel, device: str, precision: Precision, kv_precision: KvPrecision) -> list[dict[str, Any]]:
    """What the ways to step that were not chosen take, at few rows: there launches count."""
    if device == "cpu":
        return []
    engine = LmEngine(lm, 8, device=device, precision=precision, kv_precision=kv_precision)
    results: list[dict[str, Any]] = []
    for name, build in ways(engine._network, engine._rings):
        try:
            engine._generate = build()
            results += [{"way": name, "rows": rows, "step_ms": step_ms(engine, rows)} for rows in (1, 8)]
        except Exception as error:  # whatever a compiler or a driver may raise: it was refused for that
            results.append({"way": name, "failed": str(error)[:200]})
    return results


def lmgen_ms(lm: LMModel, device: str) -> float:
    """moshi's own loop for one caller, with its own graphs."""
    home = next(lm.parameters()).device
    generator = LMGen(lm.to(device), use_sampling=True)
    heard = torch.zeros(1, 8, 1, dtype=torch.int64, device=device)

    def step() -> object:
        found = generator.step(heard)
        return found if found is None else found.cpu()

    with torch.no_grad(), generator.streaming(1):
        took = median_ms(step)
    lm.to(home)
    return took


def mimi(device: str, rows: tuple[int, ...], config: dict[str, Any],
         write: Callable[[list[dict[str, Any]]], None]) -> None:
    """(c) A tick: one frame encoded and one decoded for every row."""
    results = []
    for precision in MIMI_KINDS if device != "cpu" else MIMI_KINDS[:1]:
        model = loaders.get_mimi(None, config, device=device, num_codebooks=8)
        encoder, decoder = build_engines(model, max(rows), precision)
        encoder.warm_up()
        decoder.warm_up()
        for count in rows:
            pcm = np.random.default_rng(0).normal(0, 0.1, (count, encoder.facts.samples_per_frame)).astype(np.float32)
            heard = codes(1, count, model.cardinality)[0]
            for row in range(count):
                encoder.open(row)
                decoder.open(row)
            results.append({"precision": precision, "rows": count,
                            "encode_ms": median_ms(lambda e=encoder, n=count, pcm=pcm: e.step(range(n), pcm)),
                            "decode_ms": median_ms(lambda d=decoder, n=count, heard=heard: d.step(range(n), heard))})
        encoder = decoder = model = None
        free(device)
        write(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="shapes and rows that a CPU can step")
    parser.add_argument("--only", default="equal,steps,mimi", help="parts, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.device == "cpu":
        torch.set_num_threads(1)
    began = time.monotonic()
    name = "cpu" if options.device == "cpu" else torch.cuda.get_device_name(options.device)

    def write(part: str, result: object) -> None:
        facts = {"device": name, "torch": torch.__version__, "small": options.small, "result": result}
        (options.out / f"{part}.json").write_text(json.dumps(facts, indent=1) + "\n")
        print(part, json.dumps(result)[-300:], flush=True)

    rows = (1, 2) if options.small else ROWS
    parts = options.only.split(",")
    if "equal" in parts or "steps" in parts:
        roomy = options.device != "cpu" and torch.cuda.mem_get_info(options.device)[1] > ROOMY_BYTES
        lm = random_lm(*((SMALL, torch.float32) if options.small else (SEVEN_B, torch.bfloat16)), options.device,
                       options.device if roomy else "cpu")
        print(f"the model was made after {time.monotonic() - began:.1f} s", flush=True)
        free(options.device)
        if "equal" in parts:
            write("equal", equal(lm, options.device))
            free(options.device)
        if "steps" in parts:
            steps(lm, options.device, rows, lambda results: write("steps", results))
    if "mimi" in parts:
        mimi(options.device, rows, loaders._mimi_config, lambda results: write("mimi", results))


if __name__ == "__main__":
    main()
