"""`make doors`: every client that should be able to call does, and those who should not are refused.

Starts a fresh mesh with the bundled checkpoint, lets each client hold a conversation with it, and writes
out/doors.json. A client that can't be installed here is "not tried".
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import moshimesh
import numpy as np
import soxr
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import door_costs
from harness import chat_clients, live_client, pcm_client, realtime_clients
from harness.intruders import Intruders
from harness.local_mesh import ROOT, LocalMesh
from harness.null_mesh import NullMesh
from harness.peer_intruders import tried_at_peers
from harness.recordings import read_recording
from harness.resample_floor import resample_floor_db
from harness.rotation import measure_rotation
from harness.whole_call import leaks
from services.mesh.samples import from_s16

QUESTION = ROOT / "samples" / "question-1.wav"
RATES_HERTZ = (8000, 16_000, 44_100, 48_000)
MOST_FLOOR_DB = -80.0  # of what a resampled tone has beside it
MOST_CPU_RATIO = 1.5  # of a WebSocket caller to a gRPC caller
Pcm = np.ndarray[Any, np.dtype[np.float32]]


def spoken() -> Pcm:
    """A question and the time to answer it, float32 at 24 kHz."""
    question = from_s16(read_recording(QUESTION))
    return np.concatenate((question, np.zeros(4 * 24_000, np.float32)))


async def _grpc_text(target: str, pcm: Pcm, rate: int) -> str:
    """What a caller at this rate is answered."""
    text = ""
    async with moshimesh.connect(target) as mesh:
        async for event in mesh.converse(pcm.astype("<f4"), encoding="f32", sample_rate_hertz=rate, pacing="offline",
                                         text_temperature=0.0, audio_temperature=0.0):
            text += event.text if isinstance(event, moshimesh.Speech) else ""
    return text.strip()


async def _same_reply(mesh: LocalMesh, pcm: Pcm) -> dict[str, bool]:
    """Whether callers at other rates are answered as one at 24 kHz."""
    expected = await _grpc_text(mesh.target, pcm, 24_000)
    return {str(rate): await _grpc_text(mesh.target, soxr.resample(pcm, 24_000, rate).astype(np.float32), rate)
            == expected != "" for rate in RATES_HERTZ}


def _answered(text: str, audio: Any) -> bool | str:
    """Whether a conversation had speech and text, or what is missing."""
    if not text.strip():
        return "no text came"
    return True if len(audio) and float(np.abs(np.asarray(audio, np.float32)).max()) > 0 else "no sound came"


async def _chat(url: str, pcm: Pcm, dialect: str) -> bool | str:
    held = await chat_clients.hold(url, pcm, dialect)  # type: ignore[arg-type]
    return held.error or _answered(held.text, held.audio)


async def _moshi_client(url: str, pcm: Pcm) -> bool | str:
    held = await chat_clients.hold_moshi_client(url, pcm)
    return _answered(held.text, held.audio)


async def _pcm(url: str, pcm: Pcm, audio_format: str, rate: int) -> bool | str:
    held = await pcm_client.hold(url, pcm if rate == 24_000 else soxr.resample(pcm, 24_000, rate).astype(np.float32),
                                 audio_format, rate)
    return _answered(held.text, np.frombuffer(b"".join(held.audio), np.uint8))


async def _dialect(name: str, url: str) -> bool | str:
    worked, _ = await realtime_clients.try_client(name, url, "any key")
    return worked


async def _refused(folder: Path) -> dict[str, bool]:
    """Who tried to get in and was refused: callers at the gateway, and others than gateways at codec and lm."""
    async with Intruders(folder) as ours, NullMesh(gateway_flags=ours.flags, replicas=2) as mesh:
        at_the_gateway = await ours.tried(mesh.target, mesh.url, f"localhost:{mesh.ports['gateway-2']}")
    return at_the_gateway | await tried_at_peers()


def _tokens_equal() -> bool:
    """The sacred test: gRPC at 24 kHz gives the tokens of the reference loop over moshi's own classes."""
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/e2e/test_same_tokens.py"], cwd=ROOT,
                          capture_output=True, check=False).returncode == 0


async def try_all(progress: Progress, quick: bool) -> dict[str, Any]:
    """Everything that out/doors.json says."""
    results: dict[str, Any] = {}
    pcm = spoken()
    task = progress.add_task("starting a mesh", total=None)
    async with LocalMesh(gateway_flags=("--peers-wait-s", "120")) as mesh:
        clients: dict[str, Callable[[], Awaitable[bool | str]]] = {
            "moshi_client": lambda: _moshi_client(mesh.url, pcm),
            "chat_python": lambda: _chat(mesh.url, pcm, "python"),
            "chat_rust": lambda: _chat(mesh.url, pcm, "rust"),
            "openai_realtime": lambda: _dialect("openai_realtime", mesh.url),
            "openai_agents": lambda: _dialect("openai_agents", mesh.url),
            "livekit": lambda: _dialect("livekit_agents", mesh.url),
            "pipecat": lambda: _dialect("pipecat_service", mesh.url),
            "openai_live": lambda: live_client.try_client(mesh.url, pcm),
            "pcm": lambda: _pcm(mesh.url, pcm, "s16le", 24_000),
            "g711": lambda: _pcm(mesh.url, pcm, "mulaw", 8000),
        }
        progress.update(task, total=len(clients) + 6)
        for name, hold in clients.items():
            progress.update(task, description=name, advance=1)
            try:
                results[name] = await hold()
            except Exception as error:  # one client's failure is a result
                results[name] = f"{type(error).__name__}: {error}"
        progress.update(task, description="other rates", advance=1)
        results["same_reply"] = await _same_reply(mesh, pcm)
        results["chat_same_reply"] = (await chat_clients.hold(mesh.url, pcm, "rust", query={
            "text_temperature": "0", "audio_temperature": "0"})).text.strip() == await _grpc_text(
                mesh.target, pcm, 24_000)
    progress.update(task, description="tokens", advance=1)
    results["tokens_equal_24k"] = await asyncio.to_thread(_tokens_equal)
    results["resample_floor_db"] = resample_floor_db()
    progress.update(task, description="certificates", advance=1)
    rotation = asdict(await measure_rotation())
    results |= {"rotation_calls_lost": rotation["calls_lost"], "rotation_frames_lost": rotation["frames_lost"]}
    progress.update(task, description="intruders", advance=1)
    with tempfile.TemporaryDirectory() as folder:
        results["refused"] = await _refused(Path(folder))
        progress.update(task, description="secrets", advance=1)
        results["secrets_found"] = len(await leaks(Path(folder)))
    progress.update(task, description="costs", advance=1)
    results["websocket_cpu_ratio"] = (await door_costs.run(ROOT / "samples", quick))["websocket_cpu_ratio"]
    return results


def failed(results: Mapping[str, Any]) -> list[str]:
    """The names of what does not hold, of everything that out/doors.json says."""
    return [name for name, result in results.items() if not _holds(name, result)]


def _holds(name: str, result: Any) -> bool:
    if name == "resample_floor_db":
        return bool(result <= MOST_FLOOR_DB)
    if name == "websocket_cpu_ratio":
        return bool(result <= MOST_CPU_RATIO)
    if isinstance(result, bool):
        return result
    if isinstance(result, dict):
        return all(result.values())
    return result.startswith("not tried") if isinstance(result, str) else result == 0  # calls, frames, secrets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter measures of what a door costs")
    parser.add_argument("--out", type=Path, default=Path("out/doors.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(exist_ok=True)
    console = Console()
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as progress:
        results = asyncio.run(try_all(progress, options.quick))
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    console.print_json(data=results)
    if names := failed(results):
        raise SystemExit(f"doors: look at {', '.join(names)} in {options.out}")


if __name__ == "__main__":
    main()
