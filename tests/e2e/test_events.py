"""Events of whole calls with the talking checkpoint: a barge-in, and the same with a service killed in its midst."""

from __future__ import annotations

import asyncio
import signal
import wave
from collections.abc import Callable

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.gateway.v1 import conversation_pb2_grpc
from moshimesh.lm.v1 import lm_pb2

from harness.local_mesh import ROOT, LocalMesh

Told = list[tuple[str, int, int, int]]
BARGE_IN = ["USER_SPEECH_STARTED", "USER_SPEECH_STOPPED", "MODEL_SPEECH_STARTED", "USER_SPEECH_STARTED",
            "OVERLAP_BEGUN", "MODEL_SPEECH_STOPPED", "INTERRUPTED", "OVERLAP_ENDED", "USER_SPEECH_STOPPED",
            "MODEL_SPEECH_STARTED", "MODEL_SPEECH_STOPPED"]


@pytest.fixture
def interrupt() -> npt.NDArray[np.float32]:
    """Somebody who talks over the reply and then hears the next one to its end, whichever line it is; float32
    [samples]."""
    with wave.open(str(ROOT / "samples" / "interrupt.wav")) as wav:
        said = np.frombuffer(wav.readframes(wav.getnframes()), "<i2").astype(np.float32) / 32768
    return np.append(said, np.zeros(24_000, np.float32))


async def told(target: str, pcm: npt.NDArray[np.float32], on_frame: Callable[[int], None] = lambda _: None) -> Told:
    """The events of an offline call: kind, frame, milliseconds, and the frame of the speech that comes next."""
    async with grpc.aio.insecure_channel(target) as channel:
        stream = conversation_pb2_grpc.ConversationServiceStub(channel).Converse()
        await stream.write(pb.ConverseRequest(config=pb.ConverseConfig(
            sample_rate_hertz=24_000, pacing=pb.PACING_OFFLINE,
            sampling=lm_pb2.Sampling(text_temperature=0.0, audio_temperature=0.0))))

        async def speak() -> None:
            for at in range(0, len(pcm), 1920):
                piece = pcm[at:at + 1920].astype("<f4").tobytes()
                await stream.write(pb.ConverseRequest(audio=pb.AudioChunk(pcm=piece)))
            await stream.done_writing()

        speaking = asyncio.create_task(speak())
        found: Told = []
        waiting: list[pb.ConversationEvent] = []
        async for response in stream:
            if response.HasField("event"):
                waiting.append(response.event)
            elif response.HasField("speech"):
                number = response.speech.context.sequence
                found += [(pb.EventKind.Name(one.kind).removeprefix("EVENT_KIND_"), one.sequence, one.at_ms, number)
                          for one in waiting]
                waiting = []
                on_frame(number)
        await speaking
        return found


async def test_a_barge_in_is_told_as_it_happens(mesh: LocalMesh, interrupt: npt.NDArray[np.float32]) -> None:
    found = await told(mesh.target, interrupt)
    assert [kind for kind, *_ in found] == BARGE_IN
    assert all(at_ms == 80 * sequence and 0 <= certain - sequence <= 6 for _, sequence, at_ms, certain in found)
    user, interrupted = found[3], found[6]
    assert interrupted[3] - user[1] <= 3  # frames from the user's first word to the event


@pytest.mark.slow
@pytest.mark.parametrize("service", ["codec", "lm"])
async def test_a_killed_service_changes_no_event(checkpoint: str, interrupt: npt.NDArray[np.float32], service: str
                                                 ) -> None:
    async with LocalMesh(checkpoint, slots=2, replicas=2) as mesh:
        wanted = await told(mesh.target, interrupt)

        def kill(number: int) -> None:
            if number == wanted[3][1]:  # the user's first word over the reply
                mesh.processes[service].send(signal.SIGKILL)  # it has the call or not: a coin decides

        assert [kind for kind, *_ in await told(mesh.target, interrupt, kill)] == [kind for kind, *_ in wanted]
