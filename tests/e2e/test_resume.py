"""Calls that are cut off and resumed, at the same gateway or another one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Iterable

import grpc
import moshimesh
import numpy as np
import numpy.typing as npt
import pytest
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc

from harness.local_mesh import LocalMesh
from harness.scraping import scrape, value
from tests.e2e.calls import GREEDY, SAMPLED, call, ending, pieces, slots_are_free
from tests.until import until

Pcm = npt.NDArray[np.float32]
FRAME = 1920
pytestmark = pytest.mark.slow  # meshes of two gateways


@pytest.fixture(scope="module")
async def two_gateways(checkpoint: str) -> AsyncIterator[LocalMesh]:
    async with LocalMesh(checkpoint, replicas=2, slots=4, metrics=True) as mesh:
        yield mesh


def config(**fields: object) -> conversation_pb2.ConverseRequest:
    greedy = conversation_pb2.ConverseConfig(
        sample_rate_hertz=24_000, pacing=conversation_pb2.PACING_OFFLINE, sampling=GREEDY, **fields)  # type: ignore
    return conversation_pb2.ConverseRequest(config=greedy)


async def is_written(mesh: LocalMesh) -> bool:
    """Whether the journals of the first gateway's sessions have all that was said."""
    return value(await scrape(mesh, "gateway"), "moshimesh_journal_lag_seconds") == 0


def audio(pcm: Pcm) -> conversation_pb2.ConverseRequest:
    return conversation_pb2.ConverseRequest(audio=conversation_pb2.AudioChunk(pcm=pcm.astype("<f4").tobytes()))


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
async def test_a_killed_gateway_changes_no_token(checkpoint: str, speech: Pcm, sampling: dict[str, float]) -> None:
    long = np.tile(speech, 4)[:24_000 * 12]
    async with LocalMesh(checkpoint, replicas=2, slots=2) as mesh:
        whole = await call(mesh.target, long, **sampling)

        async def paced() -> AsyncIterator[bytes]:
            async for piece in pieces(long):
                await asyncio.sleep(0.03)
                yield piece

        answers: list[moshimesh.Speech] = []
        resumed = []
        async with moshimesh.connect(mesh.addresses("gateway")) as mesh_of_two:
            async for event in mesh_of_two.converse(paced(), encoding="f32", pacing="offline", **sampling):
                if isinstance(event, moshimesh.Speech):
                    answers.append(event)
                    if len(answers) == 60:
                        mesh.processes["gateway"].send(signal.SIGKILL)
                elif isinstance(event, moshimesh.Resumed):
                    resumed.append(event)
                elif isinstance(event, moshimesh.Summary):
                    assert event.frames_out == event.frames_in == len(answers)
        assert len(resumed) == 1
        assert [frame.sequence for frame in answers] == [frame.sequence for frame in whole.speech]
        assert [(frame.text_token, *frame.codes) for frame in answers] == [
            (frame.text_token, *frame.codes) for frame in whole.speech]
        pcm = np.frombuffer(b"".join(frame.pcm for frame in answers), dtype="<f4")
        assert np.abs(pcm - whole.pcm).max() < 1e-3


async def test_a_gateway_that_stops_changes_no_token_and_costs_no_frame(checkpoint: str, speech: Pcm) -> None:
    """The old call answers until the new one has caught up."""
    long = np.tile(speech, 4)[:24_000 * 8]
    async with LocalMesh(checkpoint, replicas=2, slots=2) as mesh:
        whole = await call(mesh.target, long, **GREEDY)
        answers: list[moshimesh.Speech] = []
        resumed = []
        async with moshimesh.connect(mesh.addresses("gateway")) as mesh_of_two:
            async for event in mesh_of_two.converse(long.tobytes(), encoding="f32", **GREEDY):
                if isinstance(event, moshimesh.Speech):
                    answers.append(event)
                    if len(answers) == 40:
                        mesh.processes["gateway"].send(signal.SIGTERM)
                elif isinstance(event, moshimesh.Resumed):
                    resumed.append(event.reason)
        assert resumed in (["GO_AWAY"], ["SESSION_MOVED"])  # which it is depends on how busy the machine is
        assert answers[-1].frames_skipped == 0
        assert [(frame.sequence, frame.text_token, *frame.codes) for frame in answers] == [
            (frame.sequence, frame.text_token, *frame.codes) for frame in whole.speech]


async def test_two_gateways_fight_for_a_session(two_gateways: LocalMesh, speech: Pcm) -> None:
    """The last call that takes the session up has it; the other one is told why it ends, though it is writing."""
    first, second = two_gateways.addresses("gateway").split(",")
    frames = [speech[begin:begin + FRAME] for begin in range(0, len(speech) - FRAME, FRAME)]
    async with grpc.aio.insecure_channel(first) as one, grpc.aio.insecure_channel(second) as other:
        old = conversation_pb2_grpc.ConversationServiceStub(one).Converse()
        await old.write(config())
        handle = (await old.read()).ready.resume_handle
        for frame in frames[:10]:
            await old.write(audio(frame))
        for _ in range(8):
            last = (await old.read()).speech.context.sequence
        await until(lambda: is_written(two_gateways))
        new = conversation_pb2_grpc.ConversationServiceStub(other).Converse()
        await new.write(config(resume_handle=handle, first_sequence=0, answered_sequence=last))
        ready = (await new.read()).ready
        assert ready.next_sequence == last + 1
        writing = asyncio.create_task(write_until_half_closed(old, itertools.cycle(frames)))
        said, error = await ending(old)
        await writing
        assert (error.code(), said) == (grpc.StatusCode.ABORTED, "SESSION_MOVED")
        for frame in frames[:20]:
            await new.write(audio(frame))
        await new.done_writing()
        answered = []
        while (response := await new.read()) is not grpc.aio.EOF:
            if response.WhichOneof("response") == "speech":
                answered.append(response.speech.context.sequence)
        assert answered == list(range(last + 1, 21))
    assert await slots_are_free(two_gateways)


async def write_until_half_closed(call: grpc.aio.StreamStreamCall, frames: Iterable[Pcm]) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):
        for frame in frames:
            await call.write(audio(frame))
            await asyncio.sleep(0.1)


async def test_a_call_that_has_ended_can_not_be_taken_up(two_gateways: LocalMesh, speech: Pcm) -> None:
    async with grpc.aio.insecure_channel(two_gateways.target) as channel:
        stream = conversation_pb2_grpc.ConversationServiceStub(channel).Converse()
        await stream.write(config())
        handle = (await stream.read()).ready.resume_handle
        await stream.write(audio(speech[:FRAME]))
        await stream.done_writing()
        while await stream.read() is not grpc.aio.EOF:
            pass
        await two_gateways.restart("gateway")  # it writes what is left before it ends
    async with grpc.aio.insecure_channel(two_gateways.addresses("gateway").split(",")[1]) as channel:
        again = conversation_pb2_grpc.ConversationServiceStub(channel).Converse()
        await again.write(config(resume_handle=handle))
        said, error = await ending(again)
    assert (error.code(), said) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_SESSION")
