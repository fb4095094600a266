"""`make bench-recorder`: what traces cost, and whether they are complete.

    python -m bench.recorder [--quick] [--capacity N]

- Cost at half capacity: meshes with the recorder on (one frame in 100, and those that were late) and off, side by side
  and in turns; turns in which frames were late do not count, if there are others. `capacity_cost` is by how much more
  CPU time a frame takes of the process that takes most: a process serves as many callers as fit into its core, and CPU
  time depends little on other users of the machine. `p50_cost_ms` is the difference of the callers' median latency.
- The same for the gateway alone, over engines that compute nothing, also with a collector that hangs and one that is
  gone.
- Overload: twice the callers that fit, so that nearly every frame is kept; `overload_cost` is what that costs. Each
  frame of which the answer left later than one frame after its audio had arrived is a miss, by the timings that the
  callers get; `misses_traced` are those whose whole trace has come.
- `latency_explained_share`: the hops' transit, queue and compute together, over the latency that the caller measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.spread import spread
from bench.waterfall import HOPS, PARTS, Frame, bad_parents, frames_of
from harness.load import DEADLINE_MS, Caller, load, read_speech
from harness.local_mesh import LocalMesh, MeshDown, free_port
from harness.null_mesh import NullMesh
from harness.receiver import Receiver, Span, receiving
from services.mesh.recorder import GAP_NANOS, SHORTEST_NANOS

ONE_IN = 100
UNSENT_MS = 3 * (GAP_NANOS + SHORTEST_NANOS) / 1e6  # of a hop's parts, at most
OFF, ON, HUNG, GONE = "off", "on", "collector hangs", "collector gone"
NULL_CALLERS = 80  # half of what one gateway core carries
CAPACITY = 16  # live callers that `make bench` found to hold on 2 cores
QUIET_S = 3.0  # spans travel in batches of a second
PATIENCE_S = 20.0
MOST_LATE = 0.01
GOALS = {"capacity_cost": "< 0.03", "p50_cost_ms": "< 0.2", "misses": "", "misses_traced": "= misses",
         "other_frames_kept_share": f"{1 / ONE_IN:g}", "other_frames_beyond_rate": "0",
         "latency_explained_share": "≥ 0.95", "latency_explained_share_of_gateway": "≥ 0.95", "bad_parent_spans": "0"}


@dataclass(frozen=True)
class Sample:
    """One load on one mesh."""

    cpu_ms_per_frame: dict[str, float]
    """By process."""
    p50_ms: float
    p99_ms: float
    frames: int
    late_share: float
    """Of its frames, by the gateway's clock."""
    lost: int
    """Frames that were sent and neither answered nor skipped; skipping is what a live call does under load."""
    errors: int


@dataclass(frozen=True)
class Kept:
    """Which frames have a trace, of those that callers had answers to."""

    frames: int
    misses: int
    misses_traced: int
    misses_with_a_root: int
    others: int
    others_sampled: int
    others_near_events: int
    beyond_rate: int
    """Sampled frames that are more than one in ONE_IN of their call's, rounded up."""


def growth(off: Sample, on: Sample, process: str = "") -> float:
    """By what share a frame takes more CPU time of a process: by default, of the one that takes most."""
    process = process or max(off.cpu_ms_per_frame, key=lambda name: off.cpu_ms_per_frame[name])
    return on.cpu_ms_per_frame[process] / off.cpu_ms_per_frame[process] - 1


def calm(pairs: Iterable[tuple[Sample, Sample]]) -> list[tuple[Sample, Sample]]:
    """The pairs without late frames, which are all kept and so cost what half capacity is not about; else all."""
    found = list(pairs)
    return [pair for pair in found if max(one.late_share for one in pair) <= MOST_LATE] or found


def is_whole(frame: Frame) -> bool:
    """Whether all hops have come, each with its parts; those that took no time are not sent."""
    return [hop.name for hop in frame.hops] == list(HOPS) and all(
        hop.span.ms - sum(hop.ms(part) for part in PARTS) <= UNSENT_MS for hop in frame.hops)


def kept(people: Iterable[Caller], frames: Iterable[Frame]) -> Kept:
    """Hold what the callers measured against the traces that came."""
    traces = {(frame.session, frame.sequence): frame for frame in frames}
    answered = {(caller.session, sequence): ms for caller in people for sequence, ms in caller.gateway_ms.items()}
    misses = [key for key, ms in answered.items() if ms > DEADLINE_MS]
    others = [key for key, ms in answered.items() if ms <= DEADLINE_MS]
    sampled = Counter(frame.session for frame in traces.values()
                      if frame.root.attributes.get("moshimesh.kept_because") == "sampled")
    lengths = Counter(session for session, _ in answered)
    beyond = sum(max(0, count - -(-lengths[session] // ONE_IN)) for session, count in sampled.items()
                 if session in lengths)
    because = [traces[key].root.attributes.get("moshimesh.kept_because", "sampled") for key in others if key in traces]
    return Kept(len(answered), len(misses), sum(key in traces and is_whole(traces[key]) for key in misses),
                sum(key in traces for key in misses), len(others), len(because) - because.count("event"),
                because.count("event"), beyond)


def explained(people: Iterable[Caller], frames: Iterable[Frame]) -> tuple[list[float], list[float]]:
    """For each whole trace, the sum of its hops' parts over the caller's latency, and over the frame's own span."""
    latency = {(caller.session, sequence): ms for caller in people for sequence, ms in caller.latency_ms.items()}
    known = [(frame, latency[frame.session, frame.sequence]) for frame in frames
             if is_whole(frame) and (frame.session, frame.sequence) in latency]
    return [frame.explained_ms / ms for frame, ms in known], [frame.explained_ms / frame.ms for frame, _ in known]


async def sample(mesh: LocalMesh, callers: int, seconds: float, speech: Sequence[bytes], progress: Progress
                 ) -> tuple[Sample, list[Caller]]:
    """Put a load on a mesh that runs."""
    processes = {name: psutil.Process(process.child.pid) for name, process in mesh.processes.items()
                 if process.child is not None and name != "redis"}
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    people, figures = await load(mesh.target, callers, 1.0, seconds, speech, progress)
    after = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    frames = sum(len(caller.latency_ms) for caller in people)
    late = sum(ms > DEADLINE_MS for caller in people for ms in caller.gateway_ms.values())
    lost = sum(max(len(caller.sent) - caller.answers - caller.skipped, 0) for caller in people)
    return Sample({name: (after[name] - before[name]) * 1000 / max(frames, 1) for name in before}, figures.p50_ms,
                  figures.p99_ms, frames, late / max(frames, 1), lost, figures.errors), people


async def in_turns(meshes: Mapping[str, LocalMesh], callers: int, seconds: float, repeats: int,
                   speech: Sequence[bytes], progress: Progress) -> tuple[dict[str, list[Sample]], list[Caller]]:
    """The same load on each mesh in turn, every other time the other way round; also the callers that were traced."""
    samples: dict[str, list[Sample]] = {mode: [] for mode in meshes}
    recorded: list[Caller] = []
    for mesh in meshes.values():
        await load(mesh.target, min(callers, 8), 0.5, 1.0, speech)  # warm
    for repeat in range(repeats):
        for mode in list(meshes)[::-1 if repeat % 2 else 1]:
            found, people = await sample(meshes[mode], callers, seconds, speech, progress)
            samples[mode].append(found)
            recorded += people if mode == ON else []
            await asyncio.sleep(0.5)  # the slots come back
    return samples, recorded


async def quiet(receiver: Receiver) -> None:
    """Wait until nothing more comes."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while await receiver.came(QUIET_S) and asyncio.get_running_loop().time() < deadline:
        pass


def environment(endpoint: str) -> dict[str, str]:
    """Of a mesh whose recorder is on; off without an endpoint."""
    return {"MOSHIMESH_OTLP_ENDPOINT": endpoint, "MOSHIMESH_TRACE_ONE_IN": str(ONE_IN)}


async def null_engines(callers: int, quick: bool, speech: Sequence[bytes], progress: Progress) -> dict[str, Any]:
    """What it costs the gateway, whatever becomes of its spans."""
    async with contextlib.AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(receiving())
        hung = await stack.enter_async_context(receiving(hangs=True))
        endpoints = {OFF: "", ON: receiver.endpoint, HUNG: hung.endpoint, GONE: f"http://127.0.0.1:{free_port()}"}
        meshes = {mode: await stack.enter_async_context(NullMesh(slots=callers, environment=environment(endpoint)))
                  for mode, endpoint in endpoints.items()}
        samples, _ = await in_turns(meshes, callers, 4.0 if quick else 15.0, 2 if quick else 4, speech, progress)
        await quiet(receiver)
        bad = bad_parents(receiver.spans)
    pairs = {mode: calm(zip(samples[OFF], samples[mode], strict=True)) for mode in (ON, HUNG, GONE)}
    return {"callers": callers, "bad_parent_spans": len(bad), "examples": bad[:5],
            "gateway_cost": {mode: spread(growth(off, on, "gateway") for off, on in pairs[mode]) for mode in pairs},
            "p50_cost_ms": {mode: spread(on.p50_ms - off.p50_ms for off, on in pairs[mode]) for mode in pairs},
            "frames_lost": {mode: sum(one.lost for one in samples[mode]) for mode in samples},
            "failed_calls": {mode: sum(one.errors for one in samples[mode]) for mode in samples},
            "samples": {mode: [asdict(one) for one in samples[mode]] for mode in samples}}


async def real_engines(checkpoint: str, capacity: int, quick: bool, speech: Sequence[bytes], progress: Progress
                       ) -> dict[str, Any]:
    """What it costs at half capacity, and what it tells about a mesh with twice the callers it can serve."""
    half, crowd = max(1, capacity // 2), 2 * capacity
    async with contextlib.AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(receiving())
        meshes = {mode: await stack.enter_async_context(LocalMesh(checkpoint, slots=crowd,
                                                                  environment=environment(endpoint)))
                  for mode, endpoint in ((OFF, ""), (ON, receiver.endpoint))}
        samples, few = await in_turns(meshes, half, 5.0 if quick else 20.0, 2 if quick else 5, speech, progress)
        await quiet(receiver)
        few_spans: list[Span] = list(receiver.spans)
        without, _ = await sample(meshes[OFF], crowd, 6.0 if quick else 30.0, speech, progress)
        overload, crowded = await sample(meshes[ON], crowd, 6.0 if quick else 30.0, speech, progress)
        await asyncio.sleep(1.0)  # what is asked for lazily
        await quiet(receiver)
        spans = list(receiver.spans)
    frames, everybody = frames_of(spans), [*few, *crowded]
    pairs = calm(zip(samples[OFF], samples[ON], strict=True))
    late, all_kept = kept(crowded, frames), kept(everybody, frames)
    of_caller, of_gateway = explained(few, frames_of(few_spans))
    of_crowd, _ = explained(crowded, frames)
    bad = bad_parents(spans)
    busiest = max(samples[OFF][0].cpu_ms_per_frame, key=lambda name: samples[OFF][0].cpu_ms_per_frame[name])
    return {
        "capacity_cost": spread(growth(off, on) for off, on in pairs),
        "p50_cost_ms": spread(on.p50_ms - off.p50_ms for off, on in pairs),
        "misses": late.misses, "misses_traced": late.misses_traced,
        "other_frames_kept_share": all_kept.others_sampled / max(all_kept.others, 1),
        "other_frames_beyond_rate": all_kept.beyond_rate, "latency_explained_share": spread(of_caller),
        "latency_explained_share_of_gateway": spread(of_gateway), "bad_parent_spans": len(bad),
        "overload_cost": growth(without, overload), "calm_pairs": sum(
            max(one.late_share for one in pair) <= MOST_LATE for pair in pairs),
        "real": {"half_capacity": half, "crowd": crowd, "busiest_process": busiest,
                 "cost_by_process": {name: spread(growth(off, on, name) for off, on in pairs)
                                     for name in samples[OFF][0].cpu_ms_per_frame},
                 "overload": {**asdict(overload), "kept": asdict(late), "off": asdict(without)},
                 "kept": asdict(all_kept),
                 "explained_in_overload": spread(of_crowd),
                 "bad_parent_examples": bad[:5], "spans": len(spans),
                 "samples": {mode: [asdict(one) for one in samples[mode]] for mode in samples}}}


def show(results: Mapping[str, Any], console: Console) -> None:
    """The figures beside what they should be."""
    table = Table("figure", "median", "min – max", "goal", title="The flight recorder")
    for key in (*GOALS, "overload_cost"):
        value = results[key]
        middle, around = (value, "") if not isinstance(value, dict) else (
            value.get("median", "none"), f"{value['min']:.4f} – {value['max']:.4f}" if value else "")
        table.add_row(key, f"{middle:.4f}" if isinstance(middle, float) else str(middle), around, GOALS.get(key, ""))
    for mode, cost in results["null"]["gateway_cost"].items():
        table.add_row(f"gateway's CPU per frame, {mode}", f"{cost['median']:+.1%}",
                      f"{cost['min']:+.1%} – {cost['max']:+.1%}", "")
    for mode, lost in results["null"]["frames_lost"].items():
        table.add_row(f"frames lost, {mode}", str(lost), "", "0")
    console.print(table)
    if not results["calm_pairs"]:
        console.print("Frames were late at half capacity, in every turn: the costs are those of keeping late frames. "
                      "Run it with nothing else running, or with a lower --capacity.", style="yellow")


async def run(options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    speech = read_speech(options.wav)
    null = await null_engines(options.null_callers, options.quick, speech, progress)
    real = await real_engines(options.checkpoint, options.capacity, options.quick, speech, progress)
    real["bad_parent_spans"] += null["bad_parent_spans"]
    return {**real, "null": null, "quick": options.quick, "checkpoint": options.checkpoint, "one_in": ONE_IN,
            "method": "capacity_cost: growth of CPU time per frame of the busiest process, on against off, in turns at "
                      "half capacity; misses: by the gateway's timings as the callers got them; misses_traced: whole "
                      "traces; latency_explained_share: at half capacity, against the callers' own clocks"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter and fewer repeats: under 3 minutes")
    parser.add_argument("--capacity", type=int, default=CAPACITY, help="live callers that this machine holds")
    parser.add_argument("--null-callers", type=int, default=NULL_CALLERS, help="callers over engines that do nothing")
    parser.add_argument("--checkpoint", default="checkpoints/talker")
    parser.add_argument("--wav", type=Path, default=Path("samples"))
    parser.add_argument("--out", type=Path, default=Path("out/recorder.json"))
    options = parser.parse_args()
    if not 1 <= options.capacity <= 128:
        parser.error(f"--capacity must be between 1 and 128, got {options.capacity}")
    console = Console()
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as progress:
        try:
            results = asyncio.run(run(options, progress))
        except MeshDown as error:
            raise SystemExit(f"recorder: a mesh did not start: {error}") from None
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    show(results, console)
    console.print(f"figures in {options.out}")


if __name__ == "__main__":
    main()
