"""moshi's own server on the same checkpoint, for comparison: one caller at a time, over its WebSocket.

As shipped it synchronises CUDA while it warms up and computes in bfloat16, which many CPUs only emulate. To compare
with it at its best, that call is replaced by nothing and the weights are loaded as float32.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import sphn

from harness.load import FRAME_S, Caller, Figures, figures
from harness.local_mesh import free_port

START_S = 120.0
_RUN = """
import sys, torch, runpy
torch.set_num_threads(int(sys.argv.pop(1)))
runpy.run_module("moshi.server", run_name="__main__")
"""
_RUN_ON_CPU = """
import torch
torch.cuda.synchronize = lambda *_: None
torch.bfloat16 = torch.float32  # the default of its --half flag
""" + _RUN


@contextlib.asynccontextmanager
async def reference_server(checkpoint: str, device: str, threads: int) -> AsyncIterator[int]:
    """The server's port, once it takes callers."""
    port = free_port()
    script = _RUN_ON_CPU if device == "cpu" else _RUN
    with tempfile.TemporaryDirectory() as scratch:
        flags = [str(threads), "--port", str(port), "--static", "none", "--device", device,
                 *_model_flags(checkpoint, Path(scratch))]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, *flags, env={**os.environ, "NO_TORCH_COMPILE": "1"},
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
        try:
            await _until_listening(port, process)
            yield port
        finally:
            process.kill()
            await process.wait()


def _model_flags(checkpoint: str, scratch: Path) -> list[str]:
    """How moshi.server is told what to load; of a folder it takes Mimi's configuration only as a URL in config.json."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return ["--hf-repo", checkpoint]
    config = json.loads((folder / "config.json").read_text())
    config["mimi_config_name"] = f"file://{(folder / config['mimi_config_name']).resolve()}"
    (scratch / "config.json").write_text(json.dumps(config))
    return ["--config-path", str(scratch / "config.json"), "--moshi-weight", str(folder / config["moshi_name"]),
            "--mimi-weight", str(folder / config["mimi_name"]), "--tokenizer", str(folder / config["tokenizer_name"])]


async def _until_listening(port: int, process: asyncio.subprocess.Process) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise RuntimeError(f"moshi.server ended with code {process.returncode}")
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.2)
    raise RuntimeError(f"moshi.server did not listen within {START_S:.0f} s")


async def one_caller(port: int, speech: bytes, seconds: float) -> Figures:
    """A caller at the pace of speech. The n-th page of audio answers the frame after the n-th."""
    pcm = np.frombuffer(speech, dtype="<i2").astype(np.float32) / 32768
    size = int(24_000 * FRAME_S)
    caller = Caller(0)
    writer = sphn.OpusStreamWriter(24_000)
    async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{port}/api/chat") as socket:
        await socket.receive_bytes()  # the handshake

        async def send() -> None:
            begin = time.perf_counter()
            for sequence in range(round(seconds / FRAME_S)):
                await asyncio.sleep(max(0.0, begin + sequence * FRAME_S - time.perf_counter()))
                position = sequence % (len(pcm) // size) * size
                caller.sent[sequence] = time.perf_counter()
                await socket.send_bytes(b"\x01" + writer.append_pcm(pcm[position:position + size]))

        sending = asyncio.create_task(send())
        answered = 1
        while not sending.done() or answered < len(caller.sent):
            try:
                message = await asyncio.wait_for(socket.receive_bytes(), 2.0)
            except (asyncio.TimeoutError, TimeoutError):
                break
            if message[:1] == b"\x01" and answered in caller.sent:
                caller.latency_ms[answered] = (time.perf_counter() - caller.sent[answered]) * 1000
                answered += 1
        await sending
    return figures([caller])
