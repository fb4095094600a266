"""Steps a recorded conversation again: the user's codes into a language model, whose codes become audio if wanted.

It holds a row in the language model, and one in the decoder for audio, and moves as a conversation does when a replica
drains or is lost. Nothing of it is kept.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.ending import call_too_long
from services.gateway.calls.resources import Resources
from services.gateway.path.audio import Pcm
from services.gateway.path.ingest import IN_FLIGHT_FRAMES
from services.gateway.path.lease import Lease, Leaser
from services.gateway.path.memory import DecoderMemory, LmMemory
from services.gateway.path.observer import Observer
from services.gateway.path.stage import Next, Stage
from services.gateway.peers.models import Model
from services.gateway.peers.replicas import DECODE, STEP
from services.gateway.sessions.history import History
from services.mesh.errors import IdleCaller, InvalidRequest, MeshError, NoFreeSlot
from services.mesh.incoming import next_within


@dataclass(frozen=True)
class Begun:
    """The replay is open."""

    model_id: str
    sample_rate_hertz: int
    delay_frames: int
    sampling: lm_pb2.Sampling


@dataclass(frozen=True)
class Replayed:
    """What one step answered this time."""

    step: int
    text: str
    text_token: int | None
    """None while the delay line fills."""
    codes: list[int]
    pcm: Pcm | None


@dataclass(frozen=True)
class Past:
    """The steps before those that are stepped again; see History.begin."""

    first_step: int
    user_codes: Sequence[int]
    tokens: Sequence[int]
    controls: Sequence[lm_pb2.StepControlsAt]
    prompt: lm_pb2.StepPrompt | None
    """What came before the first step of the recording."""


@dataclass(frozen=True)
class Recorded:
    """One step of a recording."""

    step: int
    user_codes: list[int]
    controls: lm_pb2.StepControls | None


class Replay:
    """One replay; see the file."""

    def __init__(self, resources: Resources, model: Model, sampling: lm_pb2.Sampling, past: History, *, audio: bool,
                 observer: Observer) -> None:
        """`past` is what the model takes as its past, empty at the beginning of a conversation."""
        self._fleet, self._model, self._sampling, self._past = resources.fleet, model, sampling, past
        self._audio, self._observer = audio, observer
        self._idle_s, self._longest_s = resources.idle_s, resources.longest_call_s
        self._name = f"replay-{secrets.token_hex(8)}"
        self._out: asyncio.Queue[Replayed | Exception | None] = asyncio.Queue()  # bounded by the steps in flight
        self._said: deque[lm_pb2.StepFrame] = deque()
        self._room = asyncio.Semaphore(IN_FLIGHT_FRAMES)

    async def hold(self, steps: AsyncIterator[Recorded]) -> AsyncGenerator[Begun | Replayed, None]:
        """Begun, then the answer to each step. Raises MeshError."""
        leases = await self._open()
        self._step = Stage(leases[0], audio_pb2.HOP_LM_STEP, Next(self._stepped, self._all_stepped, self.fail),
                           self._observer)
        self._decode = Stage(leases[1], audio_pb2.HOP_CODEC_DECODE, Next(
            self._decoded, lambda: self._out.put_nowait(None), self.fail), self._observer) if self._audio else None
        sending = asyncio.create_task(self._send(steps))
        last_call = asyncio.get_running_loop().call_later(self._longest_s, self.fail, call_too_long(self._longest_s))
        try:
            ready = leases[0].ready
            yield Begun(self._model.model_id, self._fleet.codec.info(self._model.codec_id).sample_rate_hertz,
                        ready.delay_frames, ready.sampling)
            while (out := await self._out.get()) is not None:
                if isinstance(out, Exception):
                    raise out
                self._room.release()
                yield out
        finally:
            last_call.cancel()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            self._step.close()
            if self._decode is not None:
                self._decode.close()

    async def _open(self) -> list[Lease[Any, Any]]:
        """Hold the rows. Raises MeshError; the rows that were taken are free again."""
        leasers: list[Leaser[Any, Any]] = [Leaser(self._fleet.lm, STEP, self._model.model_id, LmMemory(
            self._name, self._sampling, self._past))]
        if self._audio:
            leasers.append(Leaser(self._fleet.codec, DECODE, self._model.codec_id, DecoderMemory(
                self._name, self._past, self._fleet.codec.info(self._model.codec_id).priming_frames)))
        leases: list[Lease[Any, Any]] = []
        try:
            for leaser in leasers:
                leases.append(await leaser.lease(lambda: 0))
        except BaseException as error:
            for lease in leases:
                lease.call.cancel()
            if isinstance(error, MeshError) and error.reason == NoFreeSlot.reason:
                raise NoFreeSlot("every slot is taken; replays don't wait in line") from None
            raise
        return leases

    async def _send(self, steps: AsyncIterator[Recorded]) -> None:
        next_step = self._past.steps
        try:
            while (recorded := await self._next(steps)) is not None:
                if recorded.step != next_step:
                    raise InvalidRequest("BAD_SEQUENCE", f"step {next_step} must come next, got {recorded.step}",
                                         field="steps.first_step", accepted=next_step)
                next_step += 1
                await self._room.acquire()
                context = audio_pb2.FrameContext(sequence=recorded.step)
                self._step.send(lm_pb2.StepRequest(step=lm_pb2.StepInput(
                    frame=audio_pb2.CodeFrame(context=context, codes=recorded.user_codes), controls=recorded.controls)))
            self._step.half_close()
        except Exception as error:
            self.fail(error)

    async def _next(self, steps: AsyncIterator[Recorded]) -> Recorded | None:
        """The next step; None at the end. Raises IdleCaller."""
        try:
            return await next_within(steps, self._idle_s)
        except StopAsyncIteration:
            return None
        except (asyncio.TimeoutError, TimeoutError):
            raise IdleCaller(f"no step for {self._idle_s:.0f} s; open the replay again to go on") from None

    def _stepped(self, step: lm_pb2.StepFrame) -> None:
        if step.HasField("text_token") and self._decode is not None:
            self._said.append(step)
            self._decode.send(codec_pb2.DecodeRequest(frame=step.frame))
        else:
            self._out.put_nowait(_replayed(step, None))

    def _decoded(self, frame: audio_pb2.PcmFrame) -> None:
        self._out.put_nowait(_replayed(self._said.popleft(), np.frombuffer(frame.pcm, dtype="<f4")))

    def _all_stepped(self) -> None:
        if self._decode is not None:
            self._decode.half_close()
        else:
            self._out.put_nowait(None)

    def fail(self, error: Exception) -> None:
        """End it, after the answers that are there."""
        self._out.put_nowait(error)


def _replayed(step: lm_pb2.StepFrame, pcm: Pcm | None) -> Replayed:
    token = step.text_token if step.HasField("text_token") else None
    return Replayed(step.frame.context.sequence, step.text, token, list(step.frame.codes), pcm)
