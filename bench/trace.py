"""`make trace`: one call, and the waterfall of one of its frames.

    python -m bench.trace [--wav FILE] [--checkpoint FOLDER] [--frame N] [--callers N]
    python -m bench.trace --target localhost:50050     (a mesh that runs with --otlp-endpoint http://localhost:4317)
    python -m bench.trace --otlp-json out/trace.json --frame 40

Starts an OTLP receiver in this process and a mesh that exports every frame to it, makes a call, and shows the frame
that took longest, or the one you name: in the terminal and in out/trace.png. All spans of the call are in
out/trace.json (OTLP/JSON), to look at again with --otlp-json, or to give to Jaeger.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import moshimesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.waterfall import Frame, draw, frames_of, show
from harness.load import Caller, run_caller
from harness.local_mesh import LocalMesh, MeshDown
from harness.receiver import Receiver, Span, read, receiving, save
from harness.recordings import FRAME_BYTES, RATE_HZ, UnreadableRecording, read_recording

OTLP_PORT = 4317
# A frame's spans leave a service in batches; with a mesh of our own in quick ones, with another every second.
QUICK_EXPORT = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
PATIENCE_S = 12.0
SETTLE_S = 0.5  # the gateway asks the services for the last frames' spans when it has nothing better to send


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wav", type=Path, default=Path("samples/demo.wav"), help="a recording of speech, of any kind")
    parser.add_argument("--seconds", type=float, help="use only so much of the recording")
    parser.add_argument("--checkpoint", default="checkpoints/talker", help="for the mesh that is started")
    parser.add_argument("--device", default="cpu", help="for the mesh that is started")
    parser.add_argument("--target", default="", help="a running gateway instead; its services must export to --port")
    parser.add_argument("--port", type=int, help=f"where to receive OTLP; {OTLP_PORT} with --target, else a free one")
    parser.add_argument("--pacing", choices=("live", "offline"), default="live")
    parser.add_argument("--callers", type=int, default=1, help="calls at once: the others only keep the mesh busy")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--frame", type=int, help="show the frame with this number")
    which.add_argument("--slowest", action="store_true", help="show the frame that took longest (the default)")
    which.add_argument("--median", action="store_true", help="show a frame that took as long as half of them")
    parser.add_argument("--otlp-json", type=Path, metavar="FILE", help="show a saved trace instead of making a call")
    parser.add_argument("--out", type=Path, default=Path("out/trace.png"), help="the picture; the spans lie beside it")
    options = parser.parse_args()
    if options.callers < 1:
        parser.error(f"--callers must be at least 1, got {options.callers}")
    return options


async def converse(target: str, pcm: bytes, options: argparse.Namespace, progress: Progress) -> str:
    """The call; its session id. The other callers talk as long as it lasts. Raises moshimesh.MeshError."""
    frames = -(-len(pcm) // FRAME_BYTES)
    task = progress.add_task(f"a call, {options.pacing}", total=frames)
    session = ""
    async with moshimesh.connect(target) as mesh, company(mesh, pcm, options, frames):
        async for event in mesh.converse(pcm, pacing=options.pacing, seed=7):
            if isinstance(event, moshimesh.Ready):
                session = event.session_id
            elif isinstance(event, moshimesh.Speech):
                progress.advance(task)
    progress.update(task, completed=frames)
    return session


@contextlib.asynccontextmanager
async def company(mesh: moshimesh.Mesh, speech: bytes, options: argparse.Namespace, frames: int) -> AsyncIterator[None]:
    """Other callers, each at a phase of its own, for as long as the block lasts."""
    talking: list[asyncio.Task[None]] = []
    if options.callers > 1:
        talking = [asyncio.create_task(run_caller(mesh, Caller(number), speech, 0.08 * number / options.callers,
                                                  frames + 25)) for number in range(1, options.callers)]
        await asyncio.sleep(0.5)  # until they are in
    try:
        yield
    finally:
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)


async def arrived(receiver: Receiver, session: str, progress: Progress) -> None:
    """Wait until the spans of a mesh that goes on running have come: no news for a while after the first."""
    task = progress.add_task("waiting for spans", total=None)
    while await receiver.came(PATIENCE_S if not of_session(receiver.spans, session) else PATIENCE_S / 2):
        pass
    progress.remove_task(task)


def of_session(spans: Iterable[Span], session: str) -> list[Frame]:
    """The frames of one call."""
    return [frame for frame in frames_of(spans) if frame.session == session]


def chosen(frames: Sequence[Frame], number: int | None, median: bool = False) -> Frame:
    """The frame with this number, else the slowest, or the median one. Raises ValueError that names what is there."""
    if not frames:
        raise ValueError("there is no frame's trace in it")
    whole = [frame for frame in frames if len(frame.hops) == max(len(other.hops) for other in frames)]
    if number is None:
        by_length = sorted(whole, key=lambda frame: frame.ms)
        return by_length[len(by_length) // 2 if median else -1]
    for frame in frames:
        if frame.sequence == number:
            return frame
    numbers = sorted(frame.sequence for frame in frames)
    raise ValueError(f"frame {number} was not kept; there are {len(numbers)} from {numbers[0]} to {numbers[-1]}")


async def record(pcm: bytes, options: argparse.Namespace, console: Console) -> tuple[list[Span], list[Frame]]:
    """Every span that came, and the frames of the call."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    port = options.port if options.port is not None else OTLP_PORT if options.target else 0
    with Progress(*columns, console=console, transient=True) as progress:
        async with receiving(port) as receiver:
            if options.target:
                session = await converse(options.target, pcm, options, progress)
                await arrived(receiver, session, progress)
            else:
                starting = progress.add_task("starting a mesh", total=None)
                environment = QUICK_EXPORT | {"MOSHIMESH_OTLP_ENDPOINT": receiver.endpoint,
                                              "MOSHIMESH_TRACE_ONE_IN": "1"}
                async with LocalMesh(options.checkpoint, options.device, slots=max(8, options.callers),
                                     environment=environment) as mesh:
                    progress.remove_task(starting)
                    session = await converse(mesh.target, pcm, options, progress)
                    await asyncio.sleep(SETTLE_S)
                    progress.add_task("stopping the mesh: it sends its last spans", total=None)
            return list(receiver.spans), of_session(receiver.spans, session)


def fail(message: str) -> SystemExit:
    return SystemExit(f"trace: {message}")


async def main() -> None:
    options, console = arguments(), Console()
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)  # our mesh must not outlive us
    if options.otlp_json:
        try:
            spans = read(options.otlp_json)
        except (OSError, ValueError) as error:
            raise fail(f"{options.otlp_json} can't be read: {error}; give a file of OTLP/JSON spans, such as the "
                       "out/trace.json of an earlier run") from None
        frames = frames_of(spans)
    else:
        try:
            pcm = read_recording(options.wav)  # before a mesh is started for it
        except UnreadableRecording as error:
            raise fail(str(error)) from None
        if options.seconds:
            pcm = pcm[:int(options.seconds * RATE_HZ) * 2]
        try:
            spans, frames = await record(pcm, options, console)
        except moshimesh.MeshError as error:
            where = f"at {options.target}; is a mesh running there?" if options.target else "of this machine"
            raise fail(f"the call failed: {error} (mesh {where})") from None
        except MeshDown as error:
            raise fail(f"the mesh did not start: {error}") from None
        except OSError as error:
            raise fail(f"{error}; name another one with --port, and give it to the mesh as --otlp-endpoint") from None
        if not frames:
            raise fail(f"no spans came from {options.target}: start its services with --otlp-endpoint http://localhost:"
                       f"{options.port or OTLP_PORT} and the gateway with --trace-one-in 1 (make run "
                       f"TRACE=http://localhost:{options.port or OTLP_PORT})" if options.target else
                       f"no frame was answered: is {options.wav} longer than 0.2 s?")
        save(spans, options.out.with_suffix(".json"))
    try:
        frame = chosen(frames, options.frame, options.median)
    except ValueError as error:
        raise fail(str(error)) from None
    show(frame, console)
    draw(frame, frames, options.out)
    late = sum(one.late for one in frames)
    console.print(f"{len(frames)} frames, {late} of them late. Picture in {options.out}"
                  + ("." if options.otlp_json else f", all spans in {options.out.with_suffix('.json')}."))


if __name__ == "__main__":
    asyncio.run(main())
