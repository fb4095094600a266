"""Full-size Mimi through the codec service: what a frame costs the process that serves it, messages and all.

The service's real command on a folder with untrained weights; as many callers as in `bench.mimi_engine`, each of whom
sends the next frame when one has come back, encoded and decoded. CPU time of the service's process, as there.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import torch
from moshi.models import MimiModel
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2, codec_pb2_grpc
from rich.progress import Progress
from safetensors.torch import save_file

from bench.mimi_engine import COMPARED_BATCH, MODELS, cpu_ms, noise, rust_frame, untrained
from bench.spread import spread
from harness.local_mesh import ROOT, LocalMesh

TALKER = ROOT / "checkpoints" / "talker"
AHEAD = 2  # frames of a caller in the service: while one is decoded, the next is encoded, as in a mesh
WARM_FRAMES = 5


def run(quick: bool, progress: Progress | None = None) -> dict[str, Any]:
    """`mimi_vs_rustymimi`: times rustymimi's throughput per core, measured before and after; and both in ms."""
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # rustymimi reads it once, when it starts
    torch.set_num_threads(1)
    mimi = untrained(MODELS["full"])
    rust = rust_frame(mimi)
    if rust is None:
        return {"mimi_vs_rustymimi": None}
    rust()  # the first call costs more
    repeats = 1 if quick else 3
    task = progress.add_task("Mimi's service", total=repeats) if progress else None
    service_ms, rust_ms = [], []
    for _ in range(repeats):
        before = cpu_ms(rust)
        service_ms.append(asyncio.run(measure(mimi, 10 if quick else 40)))
        rust_ms.append((before + cpu_ms(rust)) / 2)
        if progress and task is not None:
            progress.advance(task)
    return {"mimi_vs_rustymimi": spread(rust / ours for rust, ours in zip(rust_ms, service_ms, strict=True)),
            "mimi_service": {"service_ms": spread(service_ms), "rustymimi_ms": spread(rust_ms)}}


class CodecAlone(LocalMesh):
    """No mesh but its codec."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ports = {"codec": self.codec_port}
        self.redis_url = "redis://nobody-asks"


def write_checkpoint(mimi: MimiModel, folder: Path) -> None:
    """A checkpoint with this Mimi of the full size. Its language model is only there to be complete."""
    config = json.loads((TALKER / "config.json").read_text())
    del config["mimi_config_name"]  # then it is the released one
    (folder / "config.json").write_text(json.dumps(config | {"card": mimi.cardinality}))
    for name in (config["moshi_name"], config["tokenizer_name"]):
        (folder / name).symlink_to(TALKER / name)
    save_file({name: value.contiguous() for name, value in mimi.state_dict().items()}, folder / config["mimi_name"])


async def converse(stub: codec_pb2_grpc.CodecServiceStub, name: str, pcm: bytes, frames: int) -> None:
    """One caller's frames, there and back."""
    codes: asyncio.Queue[audio_pb2.CodeFrame | None] = asyncio.Queue()  # AHEAD of them at most
    room = asyncio.Semaphore(AHEAD)

    async def speech() -> AsyncIterator[codec_pb2.EncodeRequest]:
        yield codec_pb2.EncodeRequest(config=codec_pb2.EncodeConfig(session_id=name))
        for _ in range(frames):
            await room.acquire()
            yield codec_pb2.EncodeRequest(frame=audio_pb2.PcmFrame(pcm=pcm))

    async def encoded() -> AsyncIterator[codec_pb2.DecodeRequest]:
        yield codec_pb2.DecodeRequest(config=codec_pb2.DecodeConfig(session_id=name))
        while (frame := await codes.get()) is not None:
            yield codec_pb2.DecodeRequest(frame=frame)

    async def encode() -> None:
        async for response in stub.Encode(speech()):
            if response.HasField("frame"):
                codes.put_nowait(response.frame)
        codes.put_nowait(None)

    async def decode() -> None:
        async for response in stub.Decode(encoded()):
            if response.HasField("frame"):
                room.release()

    await asyncio.gather(encode(), decode())


async def measure(mimi: MimiModel, frames: int) -> float:
    """ms of the service's CPU time per frame and caller."""
    pcm = noise(1, mimi.frame_size).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        await asyncio.to_thread(write_checkpoint, mimi, Path(folder))
        async with (CodecAlone(folder, slots=COMPARED_BATCH) as alone,
                    grpc.aio.insecure_channel(f"localhost:{alone.codec_port}") as channel):
            child = alone.processes["codec"].child
            assert child is not None
            stub, process = codec_pb2_grpc.CodecServiceStub(channel), psutil.Process(child.pid)

            async def everybody(frames: int) -> float:
                before = sum(process.cpu_times()[:2])
                await asyncio.gather(*(converse(stub, str(n), pcm, frames) for n in range(COMPARED_BATCH)))
                return (sum(process.cpu_times()[:2]) - before) * 1000 / (frames * COMPARED_BATCH)

            await everybody(WARM_FRAMES)
            return await everybody(frames)
