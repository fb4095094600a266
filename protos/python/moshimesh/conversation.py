"""A conversation that outlives its connection.

The mesh can rebuild a conversation from its own record and the last seconds of the caller's audio, so those are kept
here. When a call is cut off, the next one names the last answer that came and sends the audio after it again; every
answer comes exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

import grpc
from moshimesh.director import Director
from moshimesh.events import (
    Event,
    Heard,
    MeshError,
    Queued,
    Ready,
    Resumed,
    ResumeStatus,
    Summary,
    conversation_event,
    ended_error,
    mesh_error,
    speech_event,
)
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc
from moshimesh.sent import Sent
from moshimesh.source import Source

FIRST_RETRY_S, LONGEST_RETRY_S = 0.05, 1.0
# A mesh that was cut off may have lost the last half second of what it had answered, and is told the controls of that
# time again, each before its own audio. So audio from the first of them on waits until the mesh has said what it knows.
UNSURE_FRAMES = 25
# How often a live call sees to it that it is connected to the gateway that it would go on at. So it need not set up a
# connection when it is cut off, which takes two round trips, three with TLS.
CONNECT_EVERY_S = 60.0
# A call that answers the newest frame so soon after the one that it follows will be in time with the next one, too.
IN_STEP_S = 0.02


class _Leg:
    """One call of the conversation, at one gateway."""

    def __init__(self, stub: conversation_pb2_grpc.ConversationServiceStub, config: conversation_pb2.ConverseConfig,
                 sent: Sent, director: Director, first_sequence: int, unanswered: int, frame_bytes: int,
                 metadata: Sequence[tuple[str, str]]) -> None:
        """Its audio begins at the frame `first_sequence`, and `unanswered` is the first one without an answer."""
        self._config, self._sent, self._position = config, sent, first_sequence * frame_bytes
        self._past_end = (first_sequence + config.past_frames) * frame_bytes
        self._director, self._unheard, self._frame_bytes = director, unanswered * frame_bytes, frame_bytes
        self.ready: conversation_pb2.ConverseReady | None = None
        self._looked_at: deque[conversation_pb2.ConverseResponse] = deque()  # by catch_up; `next` gives them again
        self._open = asyncio.Event()
        self._call = stub.Converse(self._requests(), metadata=metadata)
        self._responses = self._call.__aiter__()

    async def next(self) -> conversation_pb2.ConverseResponse | None:
        """The next response; None at the end. Raises MeshError, or what the caller's audio raised."""
        return self._looked_at.popleft() if self._looked_at else await self._read()

    async def catch_up(self, answered: Callable[[], tuple[int, float]]) -> None:
        """Wait until this leg is as far as another one that goes on, whose last answer's number and time `answered`
        tells. Raises as `next` does.
        """
        while (response := await self._read()) is not None:
            self._looked_at.append(response)
            kind, (last, at) = response.WhichOneof("response"), answered()
            lags = asyncio.get_running_loop().time() - at > IN_STEP_S
            if kind == "summary" or (kind == "speech" and response.speech.context.sequence >= last + lags):
                return

    async def _read(self) -> conversation_pb2.ConverseResponse | None:
        try:
            response: conversation_pb2.ConverseResponse = await self._responses.__anext__()
        except StopAsyncIteration:
            return None
        except grpc.aio.AioRpcError as error:
            if self._sent.failure is not None:
                raise self._sent.failure from None
            raise mesh_error(error) from None
        except asyncio.CancelledError:
            if self._sent.failure is not None:  # gRPC only says that the call was cancelled
                raise self._sent.failure from None
            raise
        if response.HasField("ready"):
            # A mesh that has lost the latest frames that it answered has lost their controls, too.
            self._unheard = min(self._unheard, response.ready.next_sequence * self._frame_bytes)
            self.ready = response.ready
            self._open.set()
        elif response.HasField("ended"):  # the status that follows may be lost
            raise ended_error(response.ended)
        return response

    def cancel(self) -> None:
        """Leave."""
        self._call.cancel()
        self._open.set()  # else gRPC would let the requests of an ended call wait for ever

    async def _requests(self) -> AsyncIterator[conversation_pb2.ConverseRequest]:
        yield conversation_pb2.ConverseRequest(config=self._config)
        if self._position < self._past_end:
            for stretch in self._sent.stretches(self._position, self._past_end, self._frame_bytes):
                if self._call.done():
                    return
                yield conversation_pb2.ConverseRequest(audio=conversation_pb2.AudioChunk(pcm=stretch))
            self._position = self._past_end
        await self._open.wait()  # audio that is taken earlier would grow old in the line
        next_control = 0
        while (piece := await self._sent.read(self._position)) is not None:
            if self._call.done():  # a write now would hide the status: https://github.com/grpc/grpc/issues/36066
                return
            for number, control in self._director.due(next_control, self._unheard, self._position):
                next_control = number + 1
                yield conversation_pb2.ConverseRequest(control=control)
            self._position += len(piece)
            self._director.reached(self._position)
            yield conversation_pb2.ConverseRequest(audio=conversation_pb2.AudioChunk(pcm=piece))


class Conversation:
    """All calls of one conversation."""

    def __init__(self, stubs: Sequence[conversation_pb2_grpc.ConversationServiceStub],
                 config: conversation_pb2.ConverseConfig, source: Source, sent: Sent, director: Director,
                 sample_bytes: int, metadata: Sequence[tuple[str, str]], resume_s: float,
                 connect: Callable[[int], object],
                 on_ready: Callable[[conversation_pb2.ConverseReady], None] | None = None) -> None:
        """`connect` lets a stub's channel connect if it has not. `on_ready` hears when the conversation is open."""
        self._stubs, self._config, self._source, self._sent = stubs, config, source, sent
        self._director = director
        self._sample_bytes, self._metadata, self._resume_s = sample_bytes, metadata, resume_s
        self._connect, self._on_ready = connect, on_ready
        self._connect_at = 0.0
        self._gateway = 0  # which of the stubs is in use
        self._ready: conversation_pb2.ConverseReady | None = None
        self._answered: int | None = None  # number of the last frame whose answer came
        self._answered_at = 0.0
        self._frames_out = self._frames_before = self._skipped = self._skipped_before = 0
        self._catching_up = False  # a planned move has opened its leg

    async def events(self) -> AsyncGenerator[Event, None]:
        """What the mesh says, whichever gateway it comes from. Raises MeshError."""
        leg = self._leg()
        moving: asyncio.Task[_Leg] | None = None
        happened: list[Event] = []  # with the answer to come: if that came already, from another leg, so did these
        try:
            while True:
                try:
                    response = await leg.next()
                except MeshError as error:
                    if self._ready is None and error.code is grpc.StatusCode.UNAVAILABLE and (
                            self._gateway + 1 < len(self._stubs)):
                        leg.cancel()
                        self._gateway += 1
                        leg = self._leg()
                        continue
                    if not self._can_resume(error):
                        raise
                    cut = asyncio.get_running_loop().time()
                    leg.cancel()
                    moved = await self._moved(moving, error)
                    moving = None
                    leg = moved or await self._resume(error)
                    self._go_on(leg)
                    happened.clear()
                    yield Resumed(error.reason or error.code.name, asyncio.get_running_loop().time() - cut)
                    continue
                if response is None:
                    return
                kind = response.WhichOneof("response")
                if kind == "speech":
                    speech = response.speech
                    if self._answered is not None and speech.context.sequence <= self._answered:
                        happened.clear()
                        continue
                    for event in happened:
                        yield event
                    happened.clear()
                    self._answered, self._answered_at = speech.context.sequence, asyncio.get_running_loop().time()
                    self._connect_ahead()
                    self._frames_out += 1
                    self._skipped = self._skipped_before + speech.frames_skipped
                    yield speech_event(speech, self._skipped_before)
                elif kind == "ready":
                    self._ready = ready = response.ready
                    if self._on_ready is not None:
                        self._on_ready(ready)
                    yield Ready(ready.session_id, ready.model_id, ready.codec_id, ready.sample_rate_hertz,
                                ready.samples_per_frame, ready.delay_frames, ready.sampling.seed,
                                ready.frame_due_us / 1e6, ready.resume_handle)
                elif kind == "summary":
                    for event in happened:
                        yield event
                    yield self._summary(response.summary)
                elif kind == "event":
                    happened.append(conversation_event(response.event))
                elif kind == "heard":
                    yield Heard(response.heard.sequence, response.heard.text, response.heard.unheard)
                elif kind == "queued":
                    yield Queued(response.queued.position, response.queued.estimated_wait_ms / 1000)
                elif kind == "resume_status":
                    yield ResumeStatus(response.resume_status.available)
                elif kind == "go_away" and self._ready is not None and self._ready.resume_handle and moving is None:
                    moving = asyncio.create_task(self._resume(None))
                if moving is not None and moving.done() and not moving.exception():
                    leg.cancel()
                    leg, moving = moving.result(), None
                    self._go_on(leg)
                    happened.clear()
                    yield Resumed("GO_AWAY", 0.0)
        finally:
            leg.cancel()
            if moving is not None:
                moving.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    (await moving).cancel()
            await self._sent.close()

    def _summary(self, last_leg: conversation_pb2.ConverseSummary) -> Summary:
        """Of the whole conversation, all legs together."""
        assert self._ready is not None
        skipped = last_leg.frames_skipped + self._skipped_before
        # When the last leg began after the end of the caller's audio, `_frames_before` counts frames of silence, too.
        frames_sent = -(-self._sent.end // (self._ready.samples_per_frame * self._sample_bytes))
        return Summary(min(last_leg.frames_in + self._frames_before, frames_sent - skipped), self._frames_out, skipped,
                       self._source.bytes_dropped)

    def _connect_ahead(self) -> None:
        """Be connected to the next gateway, if there is one, before it is needed."""
        live = self._config.pacing != conversation_pb2.PACING_OFFLINE
        if live and self._resume_s > 0 and len(self._stubs) > 1 and self._answered_at >= self._connect_at:
            self._connect_at = self._answered_at + CONNECT_EVERY_S
            self._connect((self._gateway + 1) % len(self._stubs))

    def _go_on(self, leg: _Leg) -> None:
        """From now on the conversation is this leg's."""
        assert leg.ready is not None
        self._ready, self._connect_at = leg.ready, 0.0
        self._frames_before = self._ready.next_sequence - self._skipped
        self._skipped_before = self._skipped

    async def _moved(self, moving: asyncio.Task[_Leg] | None, cause: MeshError) -> _Leg | None:
        """The leg that a planned move has opened, if it was ready before the call was cut off."""
        if moving is None:
            return None
        if cause.reason != "SESSION_MOVED" and not self._catching_up:  # else the move itself is about to be done
            moving.cancel()  # does nothing to one that is done
        await asyncio.wait((moving,))
        return None if moving.cancelled() or moving.exception() else moving.result()

    def _can_resume(self, error: MeshError) -> bool:
        """Whether the call was cut off rather than refused, and can be resumed."""
        cut = error.code is grpc.StatusCode.UNAVAILABLE or error.reason == "SESSION_MOVED" or (
            error.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED) and not error.reason)
        return cut and self._resume_s > 0 and self._ready is not None and bool(self._ready.resume_handle)

    async def _resume(self, cause: MeshError | None) -> _Leg:
        """A leg that goes on after the last answer. Raises the last refusal when the mesh's grace time is over.

        Without a cause the last leg goes on until this one has caught up with it, unless that is a matter of speed: a
        recording that is read as fast as it goes is not heard by anybody, and the audio that is kept has an end.
        """
        assert self._ready is not None
        beside = cause is None and self._config.pacing != conversation_pb2.PACING_OFFLINE
        now = asyncio.get_running_loop().time
        deadline = now() + min(self._ready.resume_grace_ms / 1000, self._resume_s)
        wait_s = FIRST_RETRY_S
        while True:
            self._gateway = (self._gateway + 1) % len(self._stubs)
            leg = self._leg()
            try:
                while (response := await leg.next()) is not None and response.WhichOneof("response") != "ready":
                    pass  # a place in the line
                if response is not None and beside:
                    self._catching_up = True
                    await leg.catch_up(lambda: (-1 if self._answered is None else self._answered, self._answered_at))
            except MeshError as error:
                leg.cancel()
                again = self._can_resume(error) or error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                if not again or now() > deadline:
                    raise
                cause = error
            except BaseException:
                leg.cancel()
                raise
            else:
                if response is not None:
                    return leg
            finally:
                self._catching_up = False
            await asyncio.sleep(max(wait_s, (cause.retry_after_s or 0) if cause else 0))
            wait_s = min(2 * wait_s, LONGEST_RETRY_S)

    def _leg(self) -> _Leg:
        """A call at the gateway whose turn it is."""
        config, first, next_sequence, frame_bytes = self._config, 0, 0, 0
        if self._ready is not None:
            frame_bytes = self._ready.samples_per_frame * self._sample_bytes
            next_sequence = 0 if self._answered is None else self._answered + 1
            earliest = -(-self._sent.begin // frame_bytes)
            first = max(next_sequence - self._ready.priming_frames, earliest, 0)
            config = conversation_pb2.ConverseConfig()
            config.CopyFrom(self._config)
            config.resume_handle = self._ready.resume_handle
            config.first_sequence = first
            if self._answered is not None:
                config.answered_sequence = self._answered
                directed = self._director.first_since(max(next_sequence - UNSURE_FRAMES, first) * frame_bytes)
                end = self._sent.end if directed is None else directed  # answers go on after the end of the audio
                config.past_frames = max(min(end // frame_bytes, next_sequence) - first, 0)
        return _Leg(self._stubs[self._gateway], config, self._sent, self._director, first, next_sequence, frame_bytes,
                    self._metadata)
