"""What `bench/gpu/run.sh` measures in one process: python -m bench.gpu.parts --device cuda --out out/gpu

    (a) equal    tokens beside moshi's own loop, with 8-bit keys and values, and after a prefill
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

from services.codec.engine import build_engines
from services.lm.engine import LmEngine
from services.lm.gpus import gpu_named
from services.lm.linear import Precision
from services.lm.sampling import Sampling
from services.lm.sizing import KvPrecision, size_of

SMALL = loaders._lm_kwargs | {
    "dim": 128, "num_heads": 4, "num_layers": 2, "context": 50, "text_card": 512, "depformer_dim": 64,
    "depformer_num_heads": 4, "depformer_num_layers": 1, "depformer_dim_feedforward": 264}
ROWS = (1, 8, 32, 64, 84)
KINDS: tuple[tuple[Precision, KvPrecision], ...] = (
    ("bf16", "int8"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "int8"))
GREEDY = Sampling(text_temperature=0, audio_temperature=0)


def random_lm(config: dict[str, Any], dtype: torch.dtype) -> LMModel:
    """On the CPU, so that the GPU has room for an engine."""
    lm: LMModel = loaders.get_moshi_lm(None, dict(config), device="meta", dtype=dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name.endswith("alpha"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
    return lm.eval().requires_grad_(False)


def codes(frames: int, rows: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, 2048, (frames, rows, 8))


def moshis_tokens(lm: LMModel, heard: np.ndarray[Any, np.dtype[np.int64]], device: str) -> list[list[int]]:
    """What moshi's own loop draws greedily for one caller."""
    generator = LMGen(lm.to(device), use_sampling=False)
    with torch.no_grad(), no_compile(), generator.streaming(1):
        found = [generator.step(torch.from_numpy(frame).to(device)[:, :, None]) for frame in heard]
    lm.to("cpu")
    return [[-2] * 9 if step is None else step[0, :, 0].tolist() for step in found]


def stepped(engine: LmEngine, heard: np.ndarray[Any, np.dtype[np.int64]], first: int = 0) -> list[list[int]]:
    if not first:
        engine.open(0, GREEDY)
    return [engine.step([0], frame).tolist()[0] for frame in heard[first:]]


def equal(small: LMModel, device: str) -> dict[str, Any]:
    """(a) On the small model, in float32; shares of equal tokens."""
    heard = codes(30, 1)
    expected = np.array(moshis_tokens(small, heard, device))
    result: dict[str, Any] = {}
    for kv_precision in ("fp32", "int8"):
        engine = LmEngine(small, 4, device=device, precision="fp32", kv_precision=kv_precision)
        engine.warm_up()
        found = np.array(stepped(engine, heard))
        result[f"as_lmgen_{kv_precision}_kv"] = float((found == expected).mean())
        engine.open(0, GREEDY)
        list(engine.prefill(0, heard[:20, 0], found[:20]))
        result[f"after_prefill_{kv_precision}_kv"] = float((np.array(stepped(engine, heard, 20)) == found[20:]).mean())
        result["way"], result["refused_ways"] = engine.way, list(engine.refused_ways)
    return result


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
    gpu = gpu_named(torch.cuda.get_device_name(device)) if device != "cpu" else None
    results: list[dict[str, Any]] = []
    for precision, kv_precision in KINDS:
        size = size_of(lm, precision, kv_precision)
        most = max(rows)
        if device != "cpu":
            most = min(most, size.slots_in(torch.cuda.mem_get_info(device)[0], on_gpu=True))
        engine = LmEngine(lm, most, device=device, precision=precision, kv_precision=kv_precision)
        began = time.monotonic()
        engine.warm_up()
        ready_s = time.monotonic() - began
        for count in sorted({min(count, most) for count in rows}):
            for row in range(count):
                engine.open(row, Sampling(seed=row))
            for heard in codes(engine.facts.delay_frames + 2, count):  # from then on every stream has a token
                engine.step(range(count), heard)
            engine._line.positions[:] = lm.context + 100  # full windows, whatever is in them
            heard = codes(1, count)[0]
            took = median_ms(lambda engine=engine, heard=heard: engine.step(range(len(heard)), heard))
            result = {"precision": precision, "kv_precision": kv_precision, "rows": count, "step_ms": took,
                      "way": engine.way, "refused_ways": list(engine.refused_ways), "warm_up_s": ready_s}
            if gpu is not None:
                floor_ms = size.floor_s(count, gpu.bytes_per_s) * 1e3
                result |= {"floor_ms": floor_ms, "times_the_floor": took / floor_ms}
            results.append(result)
            write(results)
        del engine
        if device != "cpu":
            torch.cuda.empty_cache()
    results.append({"lmgen_rows": 1, "step_ms": lmgen_ms(lm, device)})
    write(results)


def lmgen_ms(lm: LMModel, device: str) -> float:
    """moshi's own loop for one caller, with its own graphs."""
    generator = LMGen(lm.to(device), use_sampling=True)
    heard = torch.zeros(1, 8, 1, dtype=torch.int64, device=device)

    def step() -> object:
        found = generator.step(heard)
        return found if found is None else found.cpu()

    with torch.no_grad(), generator.streaming(1):
        took = median_ms(step)
    lm.to("cpu")
    return took


def mimi(device: str, rows: tuple[int, ...], config: dict[str, Any]) -> list[dict[str, Any]]:
    """(c) A tick: one frame encoded and one decoded for every row."""
    results = []
    for count in rows:
        model = loaders.get_mimi(None, config, device=device, num_codebooks=8)
        encoder, decoder = build_engines(model, count)
        pcm = np.random.default_rng(0).normal(0, 0.1, (count, 1920)).astype(np.float32)
        heard = codes(1, count)[0] % model.cardinality
        for row in range(count):
            encoder.open(row)
            decoder.open(row)
        results.append({"rows": count,
                        "encode_ms": median_ms(lambda e=encoder, n=count, pcm=pcm: e.step(range(n), pcm)),
                        "decode_ms": median_ms(lambda d=decoder, n=count, heard=heard: d.step(range(n), heard))})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="shapes and rows that a CPU can step")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.device == "cpu":
        torch.set_num_threads(1)
    name = "cpu" if options.device == "cpu" else torch.cuda.get_device_name(options.device)

    def write(part: str, result: object) -> None:
        facts = {"device": name, "torch": torch.__version__, "small": options.small, "result": result}
        (options.out / f"{part}.json").write_text(json.dumps(facts, indent=1) + "\n")
        print(part, json.dumps(result)[-300:], flush=True)

    small = random_lm(SMALL, torch.float32)
    write("equal", equal(small, options.device))
    rows = (1, 2) if options.small else ROWS
    lm = small if options.small else random_lm(loaders._lm_kwargs, torch.bfloat16)
    steps(lm, options.device, rows, lambda results: write("steps", results))
    write("mimi", mimi(options.device, rows, loaders._mimi_config))


if __name__ == "__main__":
    main()
