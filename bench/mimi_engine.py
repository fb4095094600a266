"""Mimi's engines beside the plain torch Mimi and rustymimi, on the same weights, in the same run.

    python -m bench.mimi_engine [--quick] [--out out/mimi_engine.json]

Every figure is ms of CPU time that one frame of one caller costs, encoded and decoded, on one thread: CPU time, because
the machine is shared. The contenders take turns, so that both sides of a ratio were measured on the same machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from moshi.models import MimiModel, loaders
from moshi.quantization.core_vq import EuclideanCodebook
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import save_file

from bench.spread import spread
from services.codec.engine import build_engines

SMALL: dict[str, Any] = loaders._mimi_config | {
    "seanet": loaders._seanet_kwargs | {"dimension": 128, "n_filters": 16},
    "transformer": loaders._transformer_kwargs | {
        "d_model": 128, "num_layers": 2, "dim_feedforward": 512, "context": 24,
        "input_dimension": 128, "output_dimensions": [128]},
    "quantizer": {"dimension": 64, "n_q": 8, "bins": 512, "input_dimension": 128, "output_dimension": 128},
}
MODELS = {"small": SMALL, "full": loaders._mimi_config}
BATCHES = (1, 8, 16, 32)
COMPARED_BATCH = 8
OURS, TORCH, RUST = "ours", "torch", "rustymimi"

Frame = Callable[[], object]  # encodes and decodes one frame of every caller


def run(quick: bool, progress: Progress | None = None) -> dict[str, Any]:
    """The figures: {model: {callers: {contender: ms, "over_torch": ratio}}} and `mimi_vs_rustymimi`.

    That is how many times rustymimi's throughput per core the engines have at 8 callers of the full-size Mimi; None
    without rustymimi. Each is a spread of min, median and max over the repeats.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # rustymimi reads it once, when it starts
    torch.set_num_threads(1)
    batches = {"small": (1, 8, 32), "full": (1, COMPARED_BATCH)} if quick else dict.fromkeys(MODELS, BATCHES)
    repeats = 5 if quick else 15
    results: dict[str, Any] = {"quick": quick, "unit": "ms of CPU time per frame and caller", "mimi_vs_rustymimi": None}
    task = progress.add_task("Mimi", total=sum(map(len, batches.values())) * repeats) if progress else None
    for model, config in MODELS.items():
        results[model] = {}
        mimi = untrained(config)
        engines = build_engines(mimi, max(batches[model]))
        rust = rust_frame(mimi) if model == "full" else None  # rustymimi knows the full-size architecture only
        for callers in batches[model]:
            with torch.no_grad(), mimi.streaming(callers):
                frames: dict[str, Frame] = {OURS: our_frame(engines, callers), TORCH: torch_frame(mimi, callers)}
                if rust is not None:
                    frames[RUST] = rust
                per_caller = {OURS: callers, TORCH: callers, RUST: 1}
                costs: dict[str, list[float]] = {name: [] for name in frames}
                for frame in frames.values():  # first calls cost more
                    frame()
                for _ in range(repeats):
                    for name, frame in frames.items():
                        costs[name].append(cpu_ms(frame) / per_caller[name])
                    if progress and task is not None:
                        progress.advance(task)
            row = {name: spread(values) for name, values in costs.items()}
            row["over_torch"] = spread(ratios(costs[TORCH], costs[OURS]))
            if RUST in costs:
                row["over_rustymimi"] = spread(ratios(costs[RUST], costs[OURS]))
                if callers == COMPARED_BATCH:
                    results["mimi_vs_rustymimi"] = row["over_rustymimi"]
            results[model][str(callers)] = row
    return results


def untrained(config: dict[str, Any]) -> MimiModel:
    """A Mimi of random weights with the eight codebooks that Moshi uses."""
    torch.manual_seed(0)
    mimi: MimiModel = loaders.get_mimi(None, config, num_codebooks=8)
    for module in mimi.modules():
        if isinstance(module, EuclideanCodebook):
            module.embedding_sum.normal_()
    return mimi


def our_frame(engines: Any, callers: int) -> Frame:
    encoder, decoder = engines
    rows = list(range(callers))
    pcm = noise(callers, encoder.facts.samples_per_frame)

    def frame() -> object:
        return decoder.step(rows, encoder.step(rows, pcm))

    return frame


def torch_frame(mimi: MimiModel, callers: int) -> Frame:
    pcm = torch.from_numpy(noise(callers, mimi.frame_size))[:, None].to(next(mimi.parameters()).device)

    def frame() -> object:
        return mimi.decode(mimi.encode(pcm))

    return frame


def rust_frame(mimi: MimiModel) -> Frame | None:
    """One caller's frame through rustymimi; None where it is not installed."""
    if importlib.util.find_spec("rustymimi") is None:
        return None
    import rustymimi  # type: ignore[import-untyped,import-not-found,unused-ignore]

    with older_weights(mimi) as path:
        tokenizer = rustymimi.Tokenizer(str(path), num_codebooks=8)
    pcm = noise(1, mimi.frame_size)[:, None]

    def frame() -> object:
        return tokenizer.decode_step(tokenizer.encode_step(pcm))

    return frame


@contextmanager
def older_weights(mimi: MimiModel) -> Iterator[Path]:
    """The weights under the parameter names that the released checkpoint has and rustymimi expects."""
    names = {"in_projs.0.weight": "in_proj_weight", "out_projs.0.weight": "out_proj.weight"}
    weights = {}
    for name, value in mimi.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        weights[name] = value.contiguous()
    with tempfile.TemporaryDirectory() as folder:
        save_file(weights, Path(folder) / "mimi.safetensors")
        yield Path(folder) / "mimi.safetensors"


def noise(callers: int, samples: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(0, 0.1, (callers, samples)).astype(np.float32)


def cpu_ms(frame: Frame) -> float:
    start = time.process_time()
    frame()
    return (time.process_time() - start) * 1000


def ratios(over: list[float], under: list[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def print_table(results: dict[str, Any], console: Console) -> None:
    columns = {"ours, ms": OURS, "torch, ms": TORCH, "rustymimi, ms": RUST,
               "ours over torch": "over_torch", "ours over rustymimi": "over_rustymimi"}
    table = Table("Mimi", "callers", *columns, title="CPU time per frame and caller, encode + decode, median")
    for model in MODELS:
        for callers, row in results[model].items():
            medians = [f"{row[key]['median']:.2f}" if key in row else "-" for key in columns.values()]
            table.add_row(model, callers, *medians)
    console.print(table)
    if results["mimi_vs_rustymimi"] is None:
        console.print("rustymimi is not installed, so it was skipped; pip install rustymimi compares with it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repeats, about a minute")
    parser.add_argument("--out", type=Path, default=Path("out/mimi_engine.json"))
    options = parser.parse_args()
    console = Console()
    with Progress(console=console) as progress:
        results = run(options.quick, progress)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print_table(results, console)


if __name__ == "__main__":
    main()
