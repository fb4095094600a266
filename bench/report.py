"""docs/benchmarks.md or docs/benchmarks-gpu.md and its charts, from the figures of `make bench` or `make bench-gpu`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from bench import sections

DOCS = Path("docs")
IMAGES = DOCS / "img"
HOPS = ("codec.encode", "lm.step", "codec.decode")
COLOURS = {"codec.encode": "#2f7ed8", "lm.step": "#d9480f", "codec.decode": "#2b8a3e", "overhead": "#8a8f98"}
# What the project set out to reach with the small checkpoint on 2 cores; None where there is no number to reach.
GOALS = {
    "lm_speedup_b1": "> 2", "lm_speedup_b16": "> 2", "lm_over_floor_b1": "≤ 1.4", "lm_over_floor_b16": "≤ 1.4",
    "capacity_callers": "24 × the reference", "capacity_aligned_callers": "", "capacity_reference_callers": "",
    "capacity_ceiling_callers": "",
    "overhead_p50_ms": "< 3", "overhead_p99_ms": "< 10", "gateway_callers_per_core": "≥ 150",
    "gateway_aligned_callers_per_core": "",
    "mimi_vs_rustymimi": "≥ 5", "mimi_engine_vs_rustymimi": "",
}
USAGE = ("real-time factor", "CPU cores", "memory MB")
MEANINGS = {
    "lm_speedup_b1": "LM step, 1 row: times faster than LMGen",
    "lm_speedup_b16": "LM step, 16 rows: times faster than LMGen",
    "lm_over_floor_b1": "LM step, 1 row: time over its bare matrix products",
    "lm_over_floor_b16": "LM step, 16 rows: time over its bare matrix products",
    "capacity_callers": "live callers, at random phases, with p99 under 80 ms and nothing skipped",
    "capacity_aligned_callers": "the same for callers whose frames end when the mesh would like them to",
    "capacity_reference_callers": "the same at random phases for moshi.server",
    "capacity_ceiling_callers": "callers that the engines alone could step in time",
    "overhead_p50_ms": "mesh overhead per frame at half capacity, p50 ms",
    "overhead_p99_ms": "mesh overhead per frame at half capacity, p99 ms",
    "gateway_callers_per_core": "callers, at random phases, per gateway core, null engines",
    "gateway_aligned_callers_per_core": "the same for callers whose frames end when the mesh would like them to",
    "mimi_vs_rustymimi": "full-size Mimi through the codec service, 8 callers: times rustymimi's throughput per core",
    "mimi_engine_vs_rustymimi": "the same for its engines alone",
}


def write(results: Mapping[str, Any], name: str = "bench") -> Path:
    """The page and its pictures, whose names begin with `name`, as far as there are figures; where the page is."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    engines = results.get("checkpoint_engines")
    device = engines["device"] if engines else "cpu"
    page = ["# Benchmarks", "", f"Written by `make {name}`; do not edit. Every figure is the median over the run's "
            "repeats, with minimum and maximum; all contenders of a row were measured in the same run.", "",
            f"Machine: {os.cpu_count()} CPU cores ({platform.machine()}), {'no GPU' if device == 'cpu' else device}. "
            "The load generator runs on the same cores as the mesh.", "", "## Summary", "", *_summary(results)]
    if engines:
        page += _checkpoint(engines)
    if "ms" in results:
        page += _lm(results, name)
    if "mimi" in results:
        page += _mimi(results["mimi"])
    if "doors" in results:
        page += _doors(results)
    if "capacity" in results:
        page += _capacity(results["capacity"], name)
    path = DOCS / f"{name.replace('bench', 'benchmarks')}.md"
    others = sections.kept(path)
    path.write_text("\n".join(page) + "\n" + (f"\n{others}\n" if others else ""))
    return path


def _doors(results: Mapping[str, Any]) -> list[str]:
    """What each door costs the gateway."""
    names = {"grpc": "gRPC", "pcm": "`/api/pcm`", "chat": "`/api/chat` (Opus)", "realtime": "`/v1/realtime`, way in"}
    rows = [[names[door], *(_number(figures[key]) if key in figures else "-" for key in (
        "cpu_ms_per_frame", "callers_per_core", "delay_p50_ms", "delay_p95_ms"))]
        for door, figures in results["doors"].items()]
    return ["", "## Doors", "", "Null engines, all doors in turns in one mesh. CPU time is the gateway's per caller's "
            "frame; delay is on the caller's clock, from sending a frame until its answer is there. Callers of "
            "`/api/chat` code Opus with a library that holds a packet back until the next, which is in their delay.",
            "", *_table(("door", "CPU ms per frame", "callers per core", "delay p50 ms", "delay p95 ms"), rows), "",
            f"A WebSocket caller (`/api/pcm`) costs {results['websocket_cpu_ratio']:.2f} times a gRPC caller. Outside "
            f"of codec and lm, its frames spend {results['doors']['pcm']['own_p50_ms']:.1f} ms (p50) and "
            f"{results['doors']['pcm']['own_p95_ms']:.1f} ms (p95): the gateway, and four trips between processes."]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _summary(results: Mapping[str, Any]) -> list[str]:
    rows = []
    for key, meaning in MEANINGS.items():
        figure = results.get(key)
        if figure:
            rows.append([f"`{key}`", meaning, f"**{_number(figure['median'])}**",
                         f"{_number(figure['min'])} – {_number(figure['max'])}", GOALS[key]])
    if "lm_tokens_equal" in results:
        equal = f"**{results['lm_tokens_equal']}**"
        rows.append(["`lm_tokens_equal`", "greedy tokens equal LMGen's", equal, "", "True"])
    return _table(["figure", "what", "median", "min – max", "goal"], rows)


def _checkpoint(engines: Mapping[str, Any]) -> list[str]:
    page = ["", "## Engines alone", "", f"{engines['checkpoint']} on {engines['device']}: ms of a step of all rows, "
            "rings full. Mimi: encode and decode. One after the other; \"-\" did not fit."]
    for part, title, theirs in (("lm", "LM", "lmgen"), ("mimi", "Mimi", "torch")):
        times = engines[part]
        names = list(dict.fromkeys(name for row in times.values() for name in row))
        ratios = [name for name in names if name != theirs]
        page += ["", *_table([f"{title} rows", *(f"{name} ms" for name in names), *(f"{name} × {theirs}"
                                                                                    for name in ratios)], [
            [batch[1:], *(_number(row[name]["median"]) if name in row else "-" for name in names),
             *(_number(row[theirs]["median"] / row[name]["median"]) if {theirs, name} <= row.keys() else "-"
               for name in ratios)] for batch, row in times.items()])]
    return page


def _lm(results: Mapping[str, Any], picture: str) -> list[str]:
    batches = list(results["ms"])
    names = list(results["ms"][batches[0]])
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    names_of = {"floor": "bare matrix products", "attention": "bare attention", "lmgen": "moshi's LMGen"}
    for name in names:
        axes.plot([int(b[1:]) for b in batches], [results["ms"][b][name]["median"] for b in batches], marker="o",
                  label=names_of.get(name, f"moshi-mesh {name}"))
    axes.set(xlabel="rows (callers)", ylabel="CPU ms per step", title="Language model: one step", ylim=(0, None))
    axes.legend()
    _save(figure, f"{picture}-lm.png")
    table = _table(["rows", *(f"{name} ms" for name in names), "× LMGen", "× floor", "× floor + attention"], [
        [b[1:], *(_number(results["ms"][b][name]["median"]) for name in names),
         *(_number(results[f"{ratio}_{b}"]["median"])
           for ratio in ("lm_speedup", "lm_over_floor", "lm_over_floor_and_attention"))]
        for b in batches])
    precision = _table(["precision", "weights MB", "equal greedy tokens", "text logit error"], [
        [name, _number(facts["bytes"] / 1e6), f"{facts['equal_greedy_share']:.1%}", f"{facts['text_logit_error']:.1e}"]
        for name, facts in results["precision"].items()])
    return ["", "## The language model alone", "", f"{results['parameters'] / 1e6:.0f} M random parameters in Moshi's "
            "shape, rings full, one thread, CPU time. The floor is the step's products with weights; attention is "
            "those with the keys and values of every row, which the floor leaves out.", "",
            f"![LM step](img/{picture}-lm.png)", "", *table, "", *precision]


def _mimi(mimi: Mapping[str, Any]) -> list[str]:
    rows = []
    for model in ("small", "full"):
        for callers, row in mimi.get(model, {}).items():
            rows.append([model, callers, *(_number(spread["median"]) for name, spread in row.items()
                                           if not name.startswith("over_")),
                         *(["-"] if len(row) < 5 else []),
                         _number(row["over_torch"]["median"]),
                         _number(row["over_rustymimi"]["median"]) if "over_rustymimi" in row else "-"])
    return ["", "## Mimi alone", "", f"Encode and decode of one frame: {mimi['unit']}.", "",
            *_table(["Mimi", "callers", "moshi-mesh", "torch", "rustymimi", "× torch", "× rustymimi"], rows)]


def _capacity(capacity: Mapping[str, Any], picture: str) -> list[str]:
    loads = sorted(capacity["loads"], key=lambda row: (-row["piece_ms"], row["callers"]))
    phases = {piece_ms: "random phases" if piece_ms == 80 else f"aligned to {piece_ms:g} ms"
              for piece_ms in dict.fromkeys(row["piece_ms"] for row in loads)}
    reference = capacity["reference"]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for (piece_ms, label), line in zip(phases.items(), ("-", ":"), strict=True):
        rows = [row for row in loads if row["piece_ms"] == piece_ms]
        for name, colour in (("p50_ms", "#2f7ed8"), ("p99_ms", "#d9480f")):
            axes.plot([row["callers"] for row in rows], [row[name] for row in rows], line, color=colour, marker="o",
                      label=f"{name[:3]}, {label}")
    axes.scatter([1], [reference["p99_ms"]], marker="x", color="black", label="moshi.server p99", zorder=3)
    axes.axhline(80, color="#c92a2a", linestyle="--", linewidth=1)
    axes.set(xlabel="live callers", ylabel="frame latency, ms", title="Latency by load", ylim=(0, 240))
    axes.legend()
    _save(figure, f"{picture}-capacity.png")
    table = _table(["frames come", "callers", "p50 ms", "p95 ms", "p99 ms", "max ms", "skipped", "holds", *USAGE], [
        [phases[row["piece_ms"]], str(row["callers"]),
         *(_number(row[key]) for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms")),
         str(row["skipped"]), "yes" if row["holds"] else "no", *_usage(row)] for row in loads])
    return ["", "## Capacity", "", "Each caller speaks at real pace: at a phase of its own, or with a microphone that "
            "hands out pieces of 10 ms at moments of its own, so that frames can end when the mesh would like them to. "
            "Latency: from handing a frame's audio to the stream until its answer is there, on the caller's clock. "
            "moshi.server, on the same "
            f"checkpoint, serves one caller at p50 {_number(reference['p50_ms'])} ms, p99 "
            f"{_number(reference['p99_ms'])} ms, and makes the others wait.",
            "", f"![Latency by load](img/{picture}-capacity.png)", "", *table,
            *_splits(capacity["splits"], picture)]


def _usage(row: Mapping[str, Any]) -> list[str]:
    factor = row.get("real_time_factor")  # older runs did not know it
    return ["-" if factor is None else _number(factor), _number(sum(row["cores"].values())),
            _number(sum(row["memory_mb"].values()))]


def _splits(splits: Sequence[Mapping[str, Any]], picture: str) -> list[str]:
    names = [f"{hop} {part}" for hop in HOPS for part in ("queue", "compute")] + ["overhead"]
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    for index, row in enumerate(splits):
        left = 0.0
        for name in names:
            width = row["parts"][name]["p50_ms"]
            hop = name.split(" ", maxsplit=1)[0]
            axes.barh(index, width, left=left, color=COLOURS[hop], alpha=0.35 if name.endswith("queue") else 1.0,
                      label=name if index == 0 else None)
            left += width
    axes.set(xlabel="ms (p50)", title="Where a frame's time goes", yticks=range(len(splits)),
             yticklabels=[f"{row['callers']} callers" for row in splits])
    axes.legend(fontsize="small", loc="lower right")
    _save(figure, f"{picture}-split.png")
    rows = [[str(row["callers"]), *(f"{_number(row['parts'][name]['p50_ms'])} / {_number(row['parts'][name]['p99_ms'])}"
                                    for name in names), *_usage(row)] for row in splits]
    return ["", "## Where a frame's time goes", "", "p50 / p99 in ms at 1 caller and at 25 %, 50 % and 90 % of "
            "capacity. Queue is waiting for the batch; overhead is what no hop accounts for: gRPC, the event loops, "
            "the load generator's own.", "", f"![Split](img/{picture}-split.png)", "",
            *_table(["callers", *names, *USAGE], rows)]


def _save(figure: Any, name: str) -> None:
    figure.savefig(IMAGES / name, dpi=110)
    plt.close(figure)
