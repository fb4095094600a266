"""(d) of bench/gpu/run.sh: how many live callers with full histories a mesh on this device serves.

    python -m bench.gpu.capacity CHECKPOINT --device cuda --callers 84 --out out/gpu/capacity.json

The services are the real ones, as processes. Each caller goes on from a copy of one conversation that is as long as the
model remembers, so that every step attends over full windows: the conversation is noise, sealed and put into Redis as a
gateway would. The model draws its tokens, with a seed for each caller. Written after every load: callers, p50, p99, and
whether it holds (p99 under 80 ms, nothing skipped, no call failed). From the number asked for, downwards by a quarter,
until it holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from moshimesh.audio.v1 import audio_pb2
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc
from moshimesh.journal.v1 import journal_pb2
from moshimesh.lm.v1 import lm_pb2

from harness.load import Caller, figures, read_speech, speak
from harness.local_mesh import ROOT, LocalMesh
from services.gateway.sessions.history import History
from services.gateway.sessions.records import Record
from services.gateway.sessions.sealing import Handle
from services.gateway.sessions.sessions import Sessions
from services.gateway.store import Store
from services.mesh.checkpoint import codec_id, lm_config, lm_id, resolve

SAMPLING = lm_pb2.Sampling(text_temperature=0.7, text_top_k=25, audio_temperature=0.8, audio_top_k=250, seed=1,
                           padding_bonus=0, repetition_penalty=1, repetition_penalty_context=64)
GRACE_S = 1800.0
TRIES = 4


def full_record(checkpoint: str) -> Record:
    """A conversation of noise, as long as the model remembers."""
    info = resolve(checkpoint)
    config = lm_config(info)
    own, delay, context = int(config["dep_q"]), max(config["delays"]), int(config["context"])
    history = History(int(config["n_q"]) - own, own, delay, context)
    noise = np.random.default_rng(0)
    steps = context + delay
    tokens = noise.integers(0, int(config["card"]), (steps - delay, 1 + own))
    tokens[:, 0] = noise.integers(4, int(config["text_card"]), steps - delay)
    user = noise.integers(0, int(config["card"]), (steps, history.user_codebooks))
    history.extend(journal_pb2.Chunk(user_codes=user.astype("<u2").tobytes(), tokens=tokens.astype("<u2").tobytes()))
    return Record("prefilled", lm_id(info), codec_id(info), SAMPLING, history)


async def keep(record: Record, redis_url: str) -> str:
    """The handle under which the mesh has the conversation."""
    store = Store(redis_url)
    await store.connect(Sessions.probes)
    sessions, handle = Sessions(store, "bench", GRACE_S), Handle.new()
    sessions.create(handle, record).end("cut off", keep=True)
    await sessions.close()
    await store.close()
    return handle.text


async def call(target: str, caller: Caller, handle: str, first: int, speech: bytes, frames: int, start_s: float
               ) -> None:
    """A copy of the conversation goes on, from the frame `first` on."""
    await asyncio.sleep(start_s)
    due: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def requests() -> AsyncIterator[conversation_pb2.ConverseRequest]:
        yield conversation_pb2.ConverseRequest(config=conversation_pb2.ConverseConfig(
            sample_rate_hertz=24_000, encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE,
            pacing=conversation_pb2.PACING_LIVE, fork_handle=handle, first_sequence=first,
            sampling=lm_pb2.Sampling(seed=caller.number)))
        await due
        async for pcm in speak(caller, speech, frames, 0.01, due):
            yield conversation_pb2.ConverseRequest(audio=conversation_pb2.AudioChunk(pcm=pcm))

    async with grpc.aio.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            async for response in conversation_pb2_grpc.ConversationServiceStub(channel).Converse(requests()):
                kind = response.WhichOneof("response")
                if kind == "ready":
                    due.set_result(time.perf_counter() + response.ready.frame_due_us / 1e6)
                elif kind == "speech":
                    sequence = response.speech.context.sequence - first
                    caller.answers += 1
                    if sequence in caller.sent:
                        caller.latency_ms[sequence] = (time.perf_counter() - caller.sent[sequence]) * 1000
                    caller.skipped = response.speech.frames_skipped
        except grpc.aio.AioRpcError as error:
            caller.error = f"{error.code().name}: {error.details()}"


async def load(target: str, handle: str, first: int, callers: int, seconds: float, ramp_s: float) -> dict[str, Any]:
    """So many callers, one after the other, since each one's history is fed to the model first."""
    speech = read_speech(Path("samples"))
    people = [Caller(number) for number in range(callers)]
    everybody_at = time.perf_counter() + ramp_s + 1
    await asyncio.gather(*(
        call(target, person, handle, first, random.choice(speech), round((ramp_s + seconds - start_s) / 0.08), start_s)
        for person in people for start_s in [ramp_s * person.number / callers]))
    found = figures(people, everybody_at)
    return {**vars(found), "holds": found.holds, "first_error": next((p.error for p in people if p.error), "")}


async def measure(options: argparse.Namespace) -> None:
    """Starts a mesh, and loads it."""
    record = full_record(options.checkpoint)
    lines: list[str] = []
    result: dict[str, Any] = {"device": options.device, "precision": options.precision,
                              "kv_precision": options.kv_precision, "history_steps": record.history.steps, "loads": []}

    def write() -> None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")

    began = time.monotonic()
    # Also what run.sh has installed beside the machine's Python.
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "protos/python"), os.environ.get("PYTHONPATH")]))
    mesh = LocalMesh(options.checkpoint, options.device, slots=options.callers,
                     on_line=lambda name, line: lines.append(f"{name} | {line}"),
                     environment={"MOSHIMESH_PRECISION": options.precision, "MOSHIMESH_CODEC_PRECISION": options.codec,
                                  "MOSHIMESH_KV_PRECISION": options.kv_precision, "PYTHONPATH": path})
    try:
        async with mesh:
            result["ready_s"] = time.monotonic() - began
            handle = await keep(record, mesh.redis_url)
            callers = options.callers
            for _ in range(TRIES):
                found = await load(mesh.target, handle, record.history.next_sequence, callers, options.seconds,
                                   options.ramp * callers)
                result["loads"].append(found)
                result["most_that_hold"] = callers if found["holds"] else 0
                write()
                if found["holds"] or callers == 1:
                    break
                callers = max(callers * 3 // 4, 1)
    finally:
        result["log"] = lines[-40:]
        write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--callers", type=int, default=84)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long all of them talk")
    parser.add_argument("--ramp", type=float, default=0.6, help="seconds from one caller to the next")
    parser.add_argument("--precision", default="int8", help="of the weights: with bf16, 84 and the codec fill 80 GB")
    parser.add_argument("--kv-precision", default="int8")
    parser.add_argument("--codec", default="fp32", help="the codec's precision")
    parser.add_argument("--out", type=Path, default=Path("out/gpu/capacity.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # Out of time is like Ctrl-C: the services end, too, and give the device back.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    asyncio.run(measure(options))
    found = json.loads(options.out.read_text())
    print(json.dumps(found["loads"], indent=1))
    if any(one["errors"] == one["callers"] for one in found["loads"]):
        sys.exit("no caller was served")


if __name__ == "__main__":
    main()
