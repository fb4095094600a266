"""Events of whole calls with the talking checkpoint through a mesh of real processes: held-out voices that say held-out
sentences, and talk over the replies.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.gateway.v1 import conversation_pb2_grpc
from moshimesh.lm.v1 import lm_pb2

from harness.local_mesh import LocalMesh
from services.codec.listening import FRAME
from services.codec.noises import RATE_HZ
from talker.config import REPLY_AFTER, Work
from talker.measure_turns import EARLY, LATE, Script, script
from talker.stream import Speech

CALLS, AT_ONCE = 56, 14  # every second one with barge-ins
WITHIN = 3  # frames
GREEDY = lm_pb2.Sampling(text_temperature=0.0, audio_temperature=0.0)


@dataclass(frozen=True)
class Told:
    """An event, and the frame before whose speech it came."""

    kind: str
    sequence: int
    certain: int


async def call(stub: Any, pcm: npt.NDArray[np.float32]) -> tuple[list[Told], npt.NDArray[np.float32]]:
    """The events of one call, and the model's sound [frames, FRAME] by the frame that it answers."""
    stream = stub.Converse()
    await stream.write(pb.ConverseRequest(config=pb.ConverseConfig(
        sample_rate_hertz=RATE_HZ, pacing=pb.PACING_OFFLINE, sampling=GREEDY)))

    async def speak() -> None:
        for at in range(0, len(pcm), FRAME):
            await stream.write(pb.ConverseRequest(audio=pb.AudioChunk(pcm=pcm[at:at + FRAME].astype("<f4").tobytes())))
        await stream.done_writing()

    speaking = asyncio.create_task(speak())
    said = np.zeros((len(pcm) // FRAME + 2, FRAME), np.float32)
    waiting: list[pb.ConversationEvent] = []
    told: list[Told] = []
    async for response in stream:
        if response.HasField("event"):
            waiting.append(response.event)
        elif response.HasField("speech"):
            number = response.speech.context.sequence
            said[number] = np.frombuffer(response.speech.pcm, "<f4")
            told += [Told(pb.EventKind.Name(one.kind).removeprefix("EVENT_KIND_").lower(), one.sequence, number)
                     for one in waiting]
            waiting = []
    await speaking
    return told, said


async def calls(checkpoint: str, scripts: list[Script]) -> list[tuple[list[Told], npt.NDArray[np.float32]]]:
    """All of them, some at once."""
    async with LocalMesh(checkpoint, slots=AT_ONCE) as mesh, grpc.aio.insecure_channel(mesh.target) as channel:
        stub = conversation_pb2_grpc.ConversationServiceStub(channel)
        answers = []
        for first in range(0, len(scripts), AT_ONCE):
            answers += await asyncio.gather(*(call(stub, one.pcm) for one in scripts[first:first + AT_ONCE]))
    return answers


def judged(scripts: list[Script], answers: list[tuple[list[Told], npt.NDArray[np.float32]]]) -> dict[str, Any]:
    """Shares, and what went wrong."""
    delays, replies, missed, false, others = [], [], 0, 0, 0
    for plan, (told, said) in zip(scripts, answers, strict=True):
        loud = np.sqrt(np.mean(said**2, axis=1)) > 0.01
        interrupted = [one for one in told if one.kind == "interrupted"]
        for start, end, barge_in in plan.turns:
            begun = [one for one in told if one.kind == "model_speech_started"
                     and end + REPLY_AFTER - EARLY <= one.sequence <= end + REPLY_AFTER + LATE]
            replies.append(bool(begun))
            if not barge_in or not loud[start - 1:start + 1].any():  # there was nothing to stop
                continue
            mine = [one for one in interrupted if start - 1 <= one.sequence <= start + 12]
            if mine:
                delays.append(mine[0].certain - start)
                interrupted.remove(mine[0])
            else:
                missed += 1
        others += len(interrupted)
        false += sum(one.kind == "back_channel" for one in told)
    within = sum(delay <= WITHIN for delay in delays)
    total = len(delays) + missed
    return {"interrupted_within_3": round(within / max(total, 1), 4), "barge_ins": total, "interrupted_missed": missed,
            "interrupted_delay_frames": {int(one): delays.count(one) for one in sorted(set(delays))},
            "interrupted_without_barge_in": others, "back_channels": false,
            "reply_started_in_window": round(float(np.mean(replies)), 4), "user_turns": len(replies)}


def run(checkpoint: str, work: Path, seed: int = 77) -> dict[str, Any]:
    """The keys of out/direct.json that are about whole calls."""
    speech, rng = Speech(Work(work), "heldout_voice"), np.random.default_rng(seed)
    scripts = [script(speech, rng, barge_in=number % 2 == 1, parts=1 + (number % 4 == 0)) for number in range(CALLS)]
    return judged(scripts, asyncio.run(calls(checkpoint, scripts)))
