"""`make demo`: one conversation with the mesh, from a WAV file to a WAV file, and where its time went."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
import wave
from collections.abc import Sequence
from pathlib import Path

import moshimesh
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from harness.local_mesh import LocalMesh, MeshDown, bundled_voices, mesh_at_or_started
from harness.recordings import FRAME_BYTES, RATE_HZ, UnreadableRecording, read_recording

OUT = Path("out")
HOPS = ("gateway.ingest", "codec.encode", "lm.step", "codec.decode", "gateway.emit")
PARTS = ("queue", "compute")
console = Console()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--wav", type=Path, default=Path("samples/demo.wav"), help="a recording of speech, of any kind")
    parser.add_argument("--target", default="localhost:50050", help="a running gateway; if none, a mesh is started")
    parser.add_argument("--checkpoint", default="checkpoints/talker", help="for a mesh that has to be started")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--pacing", choices=("offline", "live"), default="live",
                        help="live: at the pace of speech, as a microphone; offline: as fast as it goes")
    return parser.parse_args()


def recording(path: Path) -> bytes:
    """Ends the program with one line when there is none."""
    try:
        return read_recording(path)
    except UnreadableRecording as error:
        raise SystemExit(f"demo: {error}") from None


async def converse(target: str, pcm: bytes, options: argparse.Namespace
                   ) -> tuple[list[moshimesh.Speech], moshimesh.Summary, float]:
    """The answers to the recording."""
    frames = -(-len(pcm) // FRAME_BYTES)
    speech: list[moshimesh.Speech] = []
    summary = moshimesh.Summary(0, 0, 0)
    began = time.monotonic()
    async with moshimesh.connect(target) as mesh:
        with Progress(console=console) as progress:
            task = progress.add_task(f"conversing ({options.pacing})", total=frames)
            async for event in mesh.converse(pcm, pacing=options.pacing, seed=options.seed):
                if isinstance(event, moshimesh.Speech):
                    speech.append(event)
                    progress.update(task, advance=1, description=f"conversing ({options.pacing}) "
                                    f"“{''.join(s.text for s in speech)[-40:]}”")
                elif isinstance(event, moshimesh.Summary):
                    summary = event
    return speech, summary, time.monotonic() - began


def hop_times(speech: Sequence[moshimesh.Speech]) -> dict[str, dict[str, list[float]]]:
    """Milliseconds per hop and part, one per frame."""
    times: dict[str, dict[str, list[float]]] = {hop: {part: [] for part in PARTS} for hop in HOPS}
    for frame in speech:
        for hop in frame.hops:
            times[hop.hop]["queue"].append(hop.queue_ms)
            times[hop.hop]["compute"].append(hop.compute_ms)
    return times


def end_to_end_ms(speech: Sequence[moshimesh.Speech]) -> list[float]:
    """From the arrival of a frame's last sample to the moment when its answer left."""
    return [(frame.hops[-1].finished_unix_nanos - frame.capture_unix_nanos) / 1e6 for frame in speech]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": round(float(np.percentile(values, 50)), 3), "p95_ms": round(float(np.percentile(values, 95)), 3),
            "max_ms": round(max(values), 3)}


def draw(speech: Sequence[moshimesh.Speech], path: Path) -> None:
    """A waterfall of the call: one line per frame, time from the frame's arrival to the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = dict(zip(HOPS, ("#8a8f98", "#2f7ed8", "#d9480f", "#2b8a3e", "#5f3dc4"), strict=True))
    figure, (waterfall, totals) = plt.subplots(2, 1, figsize=(11, 9), height_ratios=(4, 1), layout="constrained")
    for row, frame in enumerate(speech):
        for hop in frame.hops:
            start = (hop.received_unix_nanos - frame.capture_unix_nanos) / 1e6
            waterfall.barh(row, hop.queue_ms, left=start, height=0.9, color=colours[hop.hop], alpha=0.3)
            waterfall.barh(row, hop.compute_ms, left=start + hop.queue_ms, height=0.9, color=colours[hop.hop])
    for hop, colour in colours.items():
        waterfall.barh(0, 0, color=colour, label=hop)
    waterfall.invert_yaxis()
    waterfall.set(xlabel="ms since the frame's last sample arrived (pale: waiting, full: computing)", ylabel="frame",
                  title="Where the time of each 80 ms frame went")
    waterfall.legend(loc="lower right")
    totals.plot(end_to_end_ms(speech), color="#333")
    totals.axhline(80, color="#c92a2a", linestyle="--", linewidth=1, label="80 ms: one frame")
    totals.set(xlabel="frame", ylabel="end to end, ms", ylim=(0, None))
    totals.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(speech: Sequence[moshimesh.Speech], summary: moshimesh.Summary, seconds: float) -> None:
    """Files in out/ and a table on the terminal."""
    OUT.mkdir(exist_ok=True)
    with wave.open(str(OUT / "reply.wav"), "wb") as wav:
        wav.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        wav.writeframes(b"".join(frame.pcm for frame in speech))
    times = {hop: {part: percentiles(values) for part, values in parts.items()}
             for hop, parts in hop_times(speech).items()}
    total = percentiles(end_to_end_ms(speech))
    text = "".join(frame.text for frame in speech).strip()
    (OUT / "demo.json").write_text(json.dumps(
        {"frames": len(speech), "frames_skipped": summary.frames_skipped, "seconds": round(seconds, 2), "text": text,
         "hops": times, "end_to_end": total}, indent=2, ensure_ascii=False) + "\n")
    draw(speech, OUT / "frames.png")
    table = Table("hop", "part", "p50 ms", "p95 ms", "max ms", title="Latency of each hop")
    for hop, parts in times.items():
        for part, figures in parts.items():
            table.add_row(hop, part, *(f"{value:.2f}" for value in figures.values()))
    table.add_row("end to end", "", *(f"{value:.2f}" for value in total.values()), style="bold")
    console.print(table)
    console.print(f"Moshi said: “{text}”")
    console.print(f"{len(speech)} frames in {seconds:.1f} s, {summary.frames_skipped} skipped. "
                  "Listen to out/reply.wav, look at out/frames.png, figures in out/demo.json.")


async def main() -> None:
    options = arguments()
    pcm = recording(options.wav)
    mesh = LocalMesh(options.checkpoint, gateway_flags=bundled_voices(options.checkpoint))
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)  # our mesh must not outlive us
    try:
        async with mesh_at_or_started(options.target, mesh) as target:
            if target != options.target:
                console.print(f"no mesh at {options.target}: started one for this demo")
            speech, summary, seconds = await converse(target, pcm, options)
    except moshimesh.MeshError as error:
        raise SystemExit(f"demo: {error}") from None
    except MeshDown as error:
        raise SystemExit(f"demo: the mesh did not start: {error}") from None
    if not speech:
        raise SystemExit("demo: no frame was answered; is the mesh overloaded?")
    report(speech, summary, seconds)


if __name__ == "__main__":
    asyncio.run(main())
