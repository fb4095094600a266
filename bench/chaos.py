"""`make chaos`: real processes of a running mesh are killed, frozen and restarted under live calls.

    python -m bench.chaos [--quick] [--only lm_killed,redis_restarted]

Two replicas of every service, one Redis. Each caller speaks real speech at real pace with greedy sampling; after a
while of history the fault is done to the mesh; when it is done the calls go on for a while and end as usual. Written to
out/chaos.json and docs/reliability.md. Per fault:

- calls lost: calls that ended with an error;
- frames lost: frames of the callers' audio that were skipped or never answered;
- gap: the longest time between two answers of a call, beyond the 80 ms that they are apart;
- tokens equal after: the share of equal tokens after the fault, compared with an undisturbed call with the same audio.
  A call within the model's context goes on exactly; in a longer one a rebuilt row is close, not identical.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import moshimesh
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import lifecycles
from harness.load import FRAME_S, read_speech
from harness.local_mesh import LocalMesh

OUT = Path("out/chaos.json")
REPORT = Path("docs/reliability.md")
FRAME_BYTES = int(24_000 * FRAME_S) * 2
GREEDY: dict[str, Any] = {"text_temperature": 0.0, "audio_temperature": 0.0}
PATIENCE_S = 30.0  # for the last answers


@dataclass
class Caller:
    """One live call: its audio, and the answers by sequence with the time when each came."""

    audio: Sequence[bytes]
    """Frames, spoken in a loop."""
    answers: dict[int, moshimesh.Speech] = field(default_factory=dict)
    at: dict[int, float] = field(default_factory=dict)
    resumed: list[moshimesh.Resumed] = field(default_factory=list)
    spoken: list[bytes] = field(default_factory=list)
    skipped: int = 0
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    stopped_at: float = 0.0
    error: str = "never ended"

    async def call(self, target: str, until: asyncio.Event) -> None:
        """Speak at the pace of speech."""
        async with moshimesh.connect(target) as mesh:
            try:
                async for event in mesh.converse(self._speak(until), **GREEDY):
                    if isinstance(event, moshimesh.Speech):
                        self.answers[event.sequence] = event
                        self.at[event.sequence] = time.perf_counter()
                        self.skipped = event.frames_skipped
                    elif isinstance(event, moshimesh.Ready):
                        self.opened.set()
                    elif isinstance(event, moshimesh.Resumed):
                        self.resumed.append(event)
            except moshimesh.MeshError as error:
                self.error = str(error)
            else:
                self.error = ""

    async def _speak(self, until: asyncio.Event) -> AsyncIterator[bytes]:
        await self.opened.wait()  # as a person does; what is said before, a live call may skip
        begin = time.perf_counter()
        while not until.is_set():
            number = len(self.spoken)
            await asyncio.sleep(max(0.0, begin + number * FRAME_S - time.perf_counter()))
            self.spoken.append(self.audio[number % len(self.audio)])
            yield self.spoken[-1]
        self.stopped_at = time.perf_counter()

    @property
    def frames_lost(self) -> int:
        """Frames without an answer: all that the delay line does not answer at the start, it answers at the end."""
        return len(self.spoken) - len(self.answers)

    def gap_ms(self, since: float) -> float:
        """The longest silence after a moment (perf_counter)."""
        times = [since, *(at for _, at in sorted(self.at.items()) if at > since - FRAME_S), self.stopped_at]
        return max((later - earlier - FRAME_S) * 1000 for earlier, later in itertools.pairwise(times))


def equal_share(one: Caller, reference: dict[int, moshimesh.Speech], since: float) -> tuple[int, int]:
    """Equal tokens, and tokens in all, of the answers that came after a moment."""
    equal = total = 0
    for sequence, answer in one.answers.items():
        if one.at[sequence] > since and sequence in reference:
            other = reference[sequence]
            pairs = [(answer.text_token, other.text_token), *zip(answer.codes, other.codes, strict=True)]
            equal += sum(mine == theirs for mine, theirs in pairs)
            total += len(pairs)
    return equal, total


async def undisturbed(target: str, audio: Sequence[bytes]) -> dict[int, moshimesh.Speech]:
    """The answers to the same audio when nothing happens."""
    async def pieces() -> AsyncIterator[bytes]:
        for piece in audio:
            yield piece

    async with moshimesh.connect(target) as mesh:
        return {event.sequence: event async for event in mesh.converse(pieces(), pacing="offline", **GREEDY)
                if isinstance(event, moshimesh.Speech)}


def kill(name: str) -> Callable[[LocalMesh], Awaitable[None]]:
    """kill -9 of one process."""
    async def act(mesh: LocalMesh) -> None:
        mesh.processes[name].send(signal.SIGKILL)

    return act


async def freeze_lm(mesh: LocalMesh) -> None:
    """A process that hangs with its connections alive."""
    mesh.processes["lm"].send(signal.SIGSTOP)


async def restart_redis(mesh: LocalMesh) -> None:
    """kill -9 of Redis, which keeps nothing on disk, and a new one two seconds later."""
    mesh.processes["redis"].send(signal.SIGKILL)
    await asyncio.sleep(2)
    await mesh.restart_redis()


def drain(*names: str) -> Callable[[LocalMesh], Awaitable[None]]:
    """A planned restart of processes, one after the other, as a rolling update does it."""
    async def act(mesh: LocalMesh) -> None:
        for name in names:
            await mesh.restart(name)

    return act


FAULTS: dict[str, Callable[[LocalMesh], Awaitable[None]]] = {
    "none": drain(),
    "lm_killed": kill("lm"),
    "codec_killed": kill("codec"),
    "gateway_killed": kill("gateway"),
    "lm_frozen": freeze_lm,
    "redis_restarted": restart_redis,
    "lm_drained": drain("lm"),
    "codec_drained": drain("codec"),
    "gateway_drained": drain("gateway"),
    "rolling_restart": drain("lm", "lm-2", "codec", "codec-2", "gateway", "gateway-2"),
}


async def restore(mesh: LocalMesh) -> None:
    """Start again what a fault has ended, and wake what it has frozen."""
    ended = [name for name in mesh.ports if not mesh.processes[name].running]
    for name in mesh.ports:
        if name not in ended:
            mesh.processes[name].send(signal.SIGCONT)
    for name in ended:
        await mesh.start_replica(name)
    for name in mesh.ports:
        await mesh.wait_ready(name, mesh.ports[name])


async def run(mesh: LocalMesh, fault: str, callers: int, history_s: float, after_s: float,
              wav: Path = Path("samples")) -> dict[str, Any]:
    """One fault in a mesh with two replicas of everything: its row of the table. Leaves the mesh whole."""
    speech = b"".join(read_speech(wav))
    frames = [speech[begin:begin + FRAME_BYTES] for begin in range(0, len(speech) - FRAME_BYTES + 1, FRAME_BYTES)]
    people = [Caller(frames[offset:] + frames[:offset]) for offset in range(0, 37 * callers, 37)]
    gateways = mesh.addresses("gateway").split(",")
    until = asyncio.Event()
    # Half of the callers come to each gateway first.
    calls = [asyncio.create_task(person.call(",".join(gateways[number % 2:] + gateways[:number % 2]), until))
             for number, person in enumerate(people)]
    try:
        await asyncio.sleep(history_s)
        since = time.perf_counter()
        await FAULTS[fault](mesh)
        await asyncio.sleep(after_s)
    finally:
        until.set()
        await asyncio.wait(calls, timeout=PATIENCE_S)
        for call in calls:
            call.cancel()
    await restore(mesh)
    references = [await undisturbed(mesh.target, person.spoken) for person in people[:2]]
    gaps = [person.gap_ms(since) for person in people]
    shares = [equal_share(person, reference, since) for person, reference in zip(people, references, strict=False)]
    return {
        "fault": fault, "calls": callers, "calls_lost": sum(bool(person.error) for person in people),
        "errors": sorted({person.error for person in people if person.error}),
        "frames_lost": sum(person.frames_lost for person in people),
        "frames_skipped": sum(person.skipped for person in people),
        "history_s": history_s, "resumed": sum(len(person.resumed) for person in people),
        "gap_p50_ms": statistics.median(gaps) if gaps else None,
        "gap_p95_ms": float(np.percentile(gaps, 95)) if gaps else None,
        "gap_max_ms": max(gaps, default=None),
        "tokens_equal_after": sum(equal for equal, _ in shares) / max(sum(total for _, total in shares), 1),
    }


def write_report(rows: Sequence[dict[str, Any]], sessions: int, prefill: dict[str, float]) -> None:
    """The table that people read."""
    lines = [
        "# What a call survives", "",
        "Measured by `make chaos`: two replicas of each service and one Redis on one machine with two cores, the",
        "bundled checkpoint; real processes, real signals, real speech at real pace. The figures come from",
        "`out/chaos.json`.", "",
        "| fault | calls | lost | frames lost | gap p50 / p95 / max ms | tokens equal after |",
        "|---|---|---|---|---|---|"]
    for row in rows:
        gap = " / ".join("-" if row[key] is None else f"{row[key]:.0f}"
                         for key in ("gap_p50_ms", "gap_p95_ms", "gap_max_ms"))
        lines.append(f"| {row['fault']} ({row['history_s']:.0f} s of history) | {row['calls']} | {row['calls_lost']} | "
                     f"{row['frames_lost']} | {gap} | {row['tokens_equal_after']:.1%} |")
    lines += [
        "", "A gap is the longest time between two answers of a call, beyond the 80 ms that they are apart; a frame is",
        "lost when the caller's audio was skipped or never answered. `none` is the same run without a fault.", "",
        f"{sessions} random lives of sessions (`python -m bench.lifecycles`), with kill -9 of processes among them, "
        "left no slot taken.", "",
        f"Rebuilding a row from 3000 frames of history is {prefill['median']:.0f} times faster than stepping them "
        "(`python -m bench.prefill`).", ""]
    marker = "<!-- below: written by hand -->"
    text = REPORT.read_text() if REPORT.exists() else marker
    REPORT.write_text("\n".join(lines) + "\n" + text[text.index(marker):])


def main() -> None:
    from bench.prefill import prefill_speedup  # torch takes seconds to import

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 callers with 6 s of history: under 6 minutes")
    parser.add_argument("--checkpoint", default="checkpoints/talker")
    parser.add_argument("--only", default=",".join(FAULTS), help="faults, separated by commas")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - FAULTS.keys():
        raise SystemExit(f"chaos: --only knows {', '.join(FAULTS)}, got {', '.join(sorted(unknown))}")
    callers, history_s, after_s, sessions = (4, 6.0, 4.0, 1000) if options.quick else (8, 60.0, 8.0, 10_000)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting the mesh", total=len(names))

        async def all_faults() -> list[dict[str, Any]]:
            rows = []
            async with LocalMesh(options.checkpoint, slots=callers, replicas=2) as mesh:
                for name in names:
                    progress.update(task, description=name)
                    # Only a killed process makes calls bring their history.
                    seconds = history_s if name.endswith("_killed") else min(history_s, 20.0)
                    rows.append(await run(mesh, name, callers, seconds, after_s))
                    console.print({key: round(value, 3) if isinstance(value, float) else value
                                   for key, value in rows[-1].items()})
                    progress.advance(task)
            return rows

        rows = asyncio.run(all_faults())
        task = progress.add_task("random lives of sessions", total=sessions)
        asyncio.run(lifecycles.run(sessions, 1, lambda done: progress.advance(task, done)))
        task = progress.add_task("prefill beside stepping", total=1)
        prefill = prefill_speedup(repeats=1 if options.quick else 3)
        progress.advance(task)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"faults": rows, "sessions_without_a_leak": sessions, "prefill_speedup": prefill},
                              indent=1) + "\n")
    write_report(rows, sessions, prefill)
    console.print(f"figures in {OUT}, table in {REPORT}")


if __name__ == "__main__":
    main()
