"""The language model's engine beside moshi's LMGen and beside its bare matrix products, on the same weights.

    python -m bench.lm_engine [--quick] [--out out/bench-lm.json]

Everything is timed in turns within one run, in CPU time of the one thread that computes, so that other processes
hardly matter and the ratios mean something on any machine. The rings are full: the steady state of a
call, which costs most.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from moshi.models.lm import LMGen, LMModel
from moshi.utils.compile import no_compile
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.nn import functional

from bench.spread import spread
from services.lm.engine import LmEngine
from services.lm.linear import Precision
from services.lm.sampling import Sampling
from services.lm.sizing import KvPrecision

BATCHES = (1, 8, 16, 32)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
KV_PRECISIONS: tuple[KvPrecision, ...] = get_args(KvPrecision)
CONTEXT = 250
GREEDY = Sampling(text_temperature=0, audio_temperature=0)
Step = Callable[[], object]


def random_lm(context: int = CONTEXT) -> LMModel:
    """19 M random parameters in the shape of Moshi's own model."""
    torch.manual_seed(0)
    lm = LMModel(
        dim=256, num_heads=8, num_layers=4, hidden_scale=4.125, context=context, max_period=10000, text_card=512,
        existing_text_padding_id=3, n_q=16, dep_q=8, card=2048, causal=True, gating="silu", norm="rms_norm_f32",
        positional_embedding="rope", depformer_dim=128, depformer_dim_feedforward=int(4.125 * 128),
        depformer_num_heads=4, depformer_num_layers=2, depformer_multi_linear=True, depformer_context=8,
        depformer_gating="silu", depformer_pos_emb="none", depformer_weights_per_step=True,
        delays=[0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1])
    return lm.eval().requires_grad_(False)


def random_codes(frames: int, rows: int, cardinality: int = 2048, codebooks: int = 8
                 ) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Callers' codes [frames, rows, codebooks]."""
    return np.random.default_rng(0).integers(0, cardinality, (frames, rows, codebooks))


def bare_products(lm: LMModel, batch: int) -> Step:
    """The floor: every matrix product of one step, and nothing else."""
    linears = []
    for layer in lm.transformer.layers:
        linears += [layer.self_attn.in_projs[0], layer.self_attn.out_projs[0], layer.gating.linear_in,
                    layer.gating.linear_out]
    linears.append(lm.text_linear)
    for k in range(lm.dep_q):
        linears.append(lm.depformer_in[k])
        for layer in lm.depformer.layers:
            linears += [layer.self_attn.in_projs[k], layer.self_attn.out_projs[k], layer.gating[k].linear_in,
                        layer.gating[k].linear_out]
        linears.append(lm.linears[k])
    pairs = [(torch.randn(batch, linear.in_features), linear.weight) for linear in linears]

    def step() -> None:
        for x, weight in pairs:
            functional.linear(x, weight)

    return step


def bare_attention(lm: LMModel, batch: int) -> Step:
    """What the floor leaves out, since it has no weights: the rows' queries with their keys, scores with values."""
    attention = lm.transformer.layers[0].self_attn
    heads, dim = attention.num_heads, attention.embed_dim // attention.num_heads
    rings = torch.randn(len(lm.transformer.layers), 2, batch * heads, CONTEXT, dim)
    queries, scores = torch.randn(batch * heads, 1, dim), torch.randn(batch * heads, 1, CONTEXT)

    def step() -> None:
        for keys, values in rings:
            torch.bmm(queries, keys.transpose(1, 2))
            torch.bmm(scores, values)

    return step


def reference(lm: LMModel, batch: int, stack: ExitStack) -> Step:
    """A greedy LMGen step, where `lm` is. On a CPU without torch.compile: moshi only uses it outside of its layers."""
    device = next(lm.parameters()).device
    generator = LMGen(lm, use_sampling=False)
    if device.type == "cpu":
        stack.enter_context(no_compile())
    stack.enter_context(generator.streaming(batch))
    codes = torch.from_numpy(random_codes(1, batch, lm.card, lm.n_q - lm.dep_q)[0])[:, :, None].to(device)
    return lambda: generator.step(codes)


def ours(engine: LmEngine, sampled: bool) -> Step:
    """A step of every row of the engine, with full rings."""
    for row in range(engine.slots):
        engine.open(row, Sampling(seed=row) if sampled else GREEDY)
    facts = engine.facts
    engine._line.positions[:] = facts.context_frames  # as if the calls had lasted that long
    engine._line._line[:] = 0
    rows = range(engine.slots)
    codes = random_codes(1, engine.slots, facts.cardinality, facts.user_codebooks)[0]
    return lambda: engine.step(rows, codes)


def in_turns(steps: dict[str, Step], repeats: int, seconds: float) -> Iterator[dict[str, float]]:
    """Milliseconds of CPU per step of each, `repeats` times; each gets about `seconds` a turn."""
    counts = {}
    for name, step in steps.items():
        step()
        begin = time.thread_time()
        step()
        counts[name] = max(3, int(seconds / (time.thread_time() - begin)))
    for _ in range(repeats):
        turn = {}
        for name, step in steps.items():
            begin = time.thread_time()
            for _ in range(counts[name]):
                step()
            turn[name] = 1000 * (time.thread_time() - begin) / counts[name]
        yield turn


def tokens_equal(lm: LMModel, frames: int) -> bool:
    """Whether 8 rows of the engine generate what a plain loop over LMGen does for each of their callers."""
    codes, engine = random_codes(frames, 8), LmEngine(lm, 8)
    for row in range(8):
        engine.open(row, GREEDY)
    tokens = np.stack([engine.step(range(8), frame) for frame in codes])
    for row in (0, 5):
        generator = LMGen(lm, use_sampling=False)
        with no_compile(), generator.streaming(1):
            for frame, found in zip(codes[:, row], tokens[:, row], strict=True):
                expected = generator.step(torch.from_numpy(frame)[None, :, None])
                if expected is not None and not np.array_equal(expected[0, :, 0].numpy(), found):
                    return False
    return True


def agreement(lm: LMModel, frames: int, **options: Any) -> dict[str, float]:
    """Share of equal greedy tokens and error of the text logits of an engine with these options against float32.

    After the same history, as long as the ring, and with the same input at every step.
    """
    rows, chance = np.arange(4), np.random.default_rng(1)
    said = chance.integers(0, min(lm.card, lm.text_card), (CONTEXT, len(rows), 1 + lm.dep_q))
    heard = random_codes(CONTEXT, len(rows))
    engines = [LmEngine(lm, len(rows)), LmEngine(lm, len(rows), **options)]
    logits: list[torch.Tensor] = []
    for engine in engines:
        for row in rows:
            engine.open(row, GREEDY)
            for _ in engine.prefill(row, heard[:, row], said[:, row]):
                pass
        engine._network.heads.register_forward_hook(
            lambda module, inputs, heads: logits.append(heads[:, : lm.text_card]))
    line = engines[0]._line
    equal, error, size = [], 0.0, 0.0
    for codes in random_codes(frames, len(rows)):
        arguments = [torch.from_numpy(values) for values in (line.feed(rows, codes), rows, line.positions)]
        exact, other = (engine._network(arguments[0], engine._rings, *arguments[1:]).numpy() for engine in engines)
        equal.append(exact == other)
        error += float((logits[-2] - logits[-1]).square().sum())
        size += float(logits[-2].square().sum())
        line.take(rows, exact)
    return {"equal_greedy_share": float(np.mean(equal)), "text_logit_error": (error / size) ** 0.5}


@torch.no_grad()
def run(quick: bool, progress: Progress | None = None) -> dict[str, Any]:
    """Every number; see the module's docstring for what is compared."""
    if progress is None:
        with Progress(console=Console(stderr=True)) as progress:
            return run(quick, progress)
    torch.set_num_threads(1)
    lm = random_lm()
    repeats, seconds, frames = (5, 0.1, 50) if quick else (15, 0.5, 250)
    result: dict[str, Any] = {
        "parameters": sum(p.numel() for p in lm.parameters()), "ms": {}, "precision": {}, "kv_precision": {}}
    turns: dict[int, list[dict[str, float]]] = {}
    task = progress.add_task(
        "lm engine", total=len(BATCHES) * repeats + len(PRECISIONS) + len(KV_PRECISIONS) + 1)
    for batch in BATCHES:
        with ExitStack() as stack:
            steps = {"floor": bare_products(lm, batch), "attention": bare_attention(lm, batch),
                     "lmgen": reference(lm, batch, stack)}
            steps |= {precision: ours(LmEngine(lm, batch, precision=precision), sampled=False)
                      for precision in PRECISIONS}
            steps |= {f"kv {kind}": ours(LmEngine(lm, batch, kv_precision=kind), sampled=False)
                      for kind in KV_PRECISIONS[1:]}
            steps["fp32 sampled"] = ours(LmEngine(lm, batch), sampled=True)
            turns[batch] = []
            for turn in in_turns(steps, repeats, seconds):
                turns[batch].append(turn)
                progress.advance(task)
        result["ms"][f"b{batch}"] = {name: spread(turn[name] for turn in turns[batch]) for name in steps}
    speedups = {name: {batch: spread(turn["lmgen"] / turn[name] for turn in turns[batch]) for batch in BATCHES}
                for name in steps}
    for batch in BATCHES:
        result[f"lm_speedup_b{batch}"] = speedups["fp32"][batch]
        result[f"lm_over_floor_b{batch}"] = spread(turn["fp32"] / turn["floor"] for turn in turns[batch])
        result[f"lm_over_floor_and_attention_b{batch}"] = spread(
            turn["fp32"] / (turn["floor"] + turn["attention"]) for turn in turns[batch])
    result["lm_tokens_equal"] = tokens_equal(lm, 60 if quick else 250)
    progress.advance(task)
    for precision in PRECISIONS:
        result["precision"][precision] = {
            "bytes": LmEngine(lm, 1, precision=precision).facts.weights_bytes, "speedup": speedups[precision][16],
            **{f"speedup_b{batch}": values for batch, values in speedups[precision].items()},
            **agreement(lm, frames, precision=precision)}
        progress.advance(task)
    for kind in KV_PRECISIONS:
        result["kv_precision"][kind] = {
            "bytes_per_frame": LmEngine(lm, 1, kv_precision=kind).facts.kv_bytes_per_frame,
            "speedup": speedups["fp32" if kind == "fp32" else f"kv {kind}"][16],
            **agreement(lm, frames, kv_precision=kind)}
        progress.advance(task)
    return result


def show(result: dict[str, Any]) -> None:
    """The medians, for people."""
    console = Console()
    table = Table(title="One step, CPU ms (median)")
    names = list(next(iter(result["ms"].values())))
    for column in ("rows", *names, "speed-up", "over floor"):
        table.add_column(column, justify="right")
    for batch, times in result["ms"].items():
        table.add_row(batch[1:], *(f"{times[name]['median']:.2f}" for name in names),
                      f"{result[f'lm_speedup_{batch}']['median']:.2f}x",
                      f"{result[f'lm_over_floor_{batch}']['median']:.2f}x")
    console.print(table)
    for precision, facts in result["precision"].items():
        console.print(f"{precision}: {facts['bytes'] / 1e6:.1f} MB, {facts['equal_greedy_share']:.2%} equal greedy "
                      f"tokens, text logit error {facts['text_logit_error']:.1e}")
    for kind, facts in result["kv_precision"].items():
        console.print(f"keys and values {kind}: {facts['bytes_per_frame']} bytes a frame, "
                      f"{facts['speedup']['median']:.2f}x LMGen, {facts['equal_greedy_share']:.2%} equal greedy "
                      f"tokens, text logit error {facts['text_logit_error']:.1e}")
    console.print(f"tokens equal to LMGen's: {result['lm_tokens_equal']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The language model's engine beside LMGen and its bare products.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--out", type=Path, default=Path("out/bench-lm.json"), help="where the numbers go")
    arguments = parser.parse_args()
    numbers = run(arguments.quick)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(numbers, indent=2))
    show(numbers)
