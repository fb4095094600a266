"""A call that its gateway asks to leave: the next one is opened beside it, and nothing is heard of the change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import moshimesh
import pytest
from moshimesh.gateway.v1 import conversation_pb2 as pb

from tests.client.gateway import Gateway, ready, serving, speech, summary
from tests.until import until

FRAME_BYTES, PRIMING = 2 * 1920, 4
FRAMES = 20
LEAVES_AT = 10
"""Frames that have come when the first gateway asks the caller to leave."""


def frame(number: int) -> bytes:
    return bytes([number]) * FRAME_BYTES


class Moves(Gateway):
    """Answers each frame; its first call asks to leave, and its second one falls behind before it answers."""

    def __init__(self, behind: int = 3, killed: bool = False) -> None:
        super().__init__()
        self.behind, self.killed = behind, killed
        self.ahead: list[bytes] = []
        """Pieces of the second call that came before it was open."""
        self.heard: list[list[bytes]] = []
        self.caught_up = asyncio.Event()

    async def hold(self, requests: AsyncIterator[pb.ConverseRequest], context: grpc.aio.ServicerContext
                   ) -> AsyncIterator[pb.ConverseResponse]:
        config, heard = self.configs[-1], list[bytes]()
        self.heard.append(heard)
        moved, number = bool(config.resume_handle), config.first_sequence
        next_sequence = config.answered_sequence + 1 if moved else 0
        pieces = (request.audio.pcm async for request in requests if request.HasField("audio"))
        while number < config.first_sequence + config.past_frames:
            piece = await anext(pieces)
            self.ahead.append(piece)
            number += len(piece) // FRAME_BYTES
        yield ready(resume_handle="handle", resume_grace_ms=5000, priming_frames=PRIMING, next_sequence=next_sequence)
        late: list[int] = []
        async for piece in pieces:
            heard.append(piece)
            if number >= next_sequence:
                late.append(number)
            number += 1
            if moved and not self.caught_up.is_set():
                if len(late) <= self.behind:
                    continue
                self.caught_up.set()
            for sequence in late:
                yield pb.ConverseResponse(event=pb.ConversationEvent(
                    kind=pb.EVENT_KIND_USER_SPEECH_STARTED, sequence=sequence, at_ms=80 * sequence))
                yield speech(sequence)
            late.clear()
            if not moved and number == LEAVES_AT:
                yield pb.ConverseResponse(go_away=pb.GoAway(time_left_ms=5000))
            if self.killed and not moved and number == LEAVES_AT + 1:
                await until(lambda: len(self.heard) > 1)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            if not moved and number == FRAMES:  # the new one could have caught up twice
                yield pb.ConverseResponse(ended=pb.CallEnded(code=10, reason="SESSION_MOVED"))
                return
        yield summary(frames_in=max(number - next_sequence, 0))


async def talk(gateway: Moves, director: moshimesh.Director | None = None, interrupts_at: int = -1,
               pacing: str = "live") -> list[moshimesh.client.Event]:
    async def pcm() -> AsyncIterator[bytes]:
        for number in range(FRAMES):
            if number >= LEAVES_AT:  # the new call is opened, and hears these beside the old one
                await until(lambda: gateway.calls > 1)
                await asyncio.sleep(0.02)
            if director is not None:
                director.played_out(number)
            if number == interrupts_at and director is not None:
                director.interrupt()
            yield frame(number)

    async with serving(gateway) as target, moshimesh.connect(target) as mesh:
        return [event async for event in mesh.converse(
            pcm(), director=director, pacing=pacing)]  # type: ignore[arg-type]


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("pacing", ["live", "offline"])
async def test_every_answer_comes_once_whichever_call_it_is_from(pacing: str, killed: bool) -> None:
    gateway = Moves(killed=killed)
    events = await talk(gateway, pacing=pacing)
    assert [event.sequence for event in events if isinstance(event, moshimesh.Speech)] == list(range(FRAMES))
    assert [event.sequence for event in events if isinstance(event, moshimesh.ConversationEvent)] == list(range(FRAMES))
    assert sum(isinstance(event, moshimesh.Resumed) for event in events) == 1
    assert events[-1] == moshimesh.Summary(frames_in=FRAMES, frames_out=FRAMES, frames_skipped=0)


async def test_the_old_call_answers_until_the_new_one_has_caught_up() -> None:
    gateway = Moves()
    await talk(gateway)
    old, new = gateway.heard
    assert len(old) >= LEAVES_AT + gateway.behind  # which it was sent, too
    config = gateway.configs[1]
    assert (config.first_sequence, config.past_frames) == (LEAVES_AT - PRIMING, PRIMING)
    assert b"".join(gateway.ahead) == b"".join(map(frame, range(LEAVES_AT - PRIMING, LEAVES_AT)))
    assert new == [frame(number) for number in range(LEAVES_AT, FRAMES)]


@pytest.mark.parametrize(("interrupts_at", "past_frames"), [(-1, PRIMING), (LEAVES_AT - 2, PRIMING - 2)])
async def test_audio_after_a_late_control_waits_until_the_mesh_has_said_what_it_knows(
        interrupts_at: int, past_frames: int) -> None:
    """What the loudspeaker has played changes no token, and need not wait."""
    gateway = Moves()
    await talk(gateway, moshimesh.Director(), interrupts_at)
    assert gateway.configs[1].past_frames == past_frames


@pytest.mark.parametrize(("how", "connects"), [
    ({}, True), ({"pacing": "offline"}, False), ({"resume_s": 0.0}, False)])
async def test_a_live_call_is_connected_to_the_next_gateway_before_it_needs_it(how: dict[str, Any], connects: bool
                                                                               ) -> None:
    came = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        writer.close()

    async def pcm() -> AsyncIterator[bytes]:
        yield frame(0)
        if connects:
            await asyncio.wait_for(came.wait(), 20)

    class Answers(Gateway):
        async def hold(self, requests: AsyncIterator[pb.ConverseRequest], context: grpc.aio.ServicerContext
                       ) -> AsyncIterator[pb.ConverseResponse]:
            yield ready(resume_handle="handle", resume_grace_ms=5000)
            async for _ in requests:
                yield speech(0)
            yield summary(frames_in=1)

    next_one = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with next_one, serving(Answers()) as target:
        both = f"{target},127.0.0.1:{next_one.sockets[0].getsockname()[1]}"
        async with moshimesh.connect(both) as mesh:
            events = [event async for event in mesh.converse(pcm(), **how)]
    assert isinstance(events[-1], moshimesh.Summary) and came.is_set() == connects
