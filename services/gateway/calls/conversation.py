"""One conversation: wait in line, open, announce, speak, leave."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence

from services.gateway.calls.admission import rows_in_turn
from services.gateway.calls.callers import Input, Opening, Resumed
from services.gateway.calls.directing import Direction
from services.gateway.calls.ending import COMPLETED, call_too_long, reason_of, reported
from services.gateway.calls.events import (
    ConversationEvent,
    Event,
    EventKind,
    GoAway,
    HasRoom,
    Queued,
    Ready,
    ResumeStatus,
    Summary,
)
from services.gateway.calls.limits import Use
from services.gateway.calls.listening import Listened, Listeners, Listening
from services.gateway.calls.origin import Origin, find_origin, set_prompt
from services.gateway.calls.past import take_past
from services.gateway.calls.resources import Resources
from services.gateway.calls.transcript import Transcript
from services.gateway.path.audio import AudioFormat, Pcm
from services.gateway.path.ingest import Ingest
from services.gateway.path.observer import Observer
from services.gateway.path.pace import Reading
from services.gateway.path.pipeline import Pipeline, Rows, Speech
from services.gateway.path.turns import Turns
from services.gateway.peers.replicas import Replica
from services.gateway.sessions.grants import Grant
from services.gateway.sessions.journal import Listener, Session
from services.gateway.sessions.sealing import Handle
from services.mesh import logs
from services.mesh.clock import now_unix_nanos
from services.mesh.errors import CallTooLong, Draining, IdleCaller, MeshError, SessionMoved

# How long a call that was asked to leave still answers when its session has another owner. A caller that hears both
# calls misses nothing while the new one steps what was said since it was asked for, which takes a tenth of this.
HANDOVER_S = 1.0
GATEWAY_STOPS = "this gateway is stopping; connect again to reach another one"


class Conversation:
    """One call, from the line or its Ready to its Summary."""

    def __init__(self, resources: Resources, opening: Opening, handle: Handle, call_id: str, key_id: str,
                 observer: Observer) -> None:
        self._key_id = key_id
        self._resources, self._opening, self._observer = resources, opening, observer
        self._handle, self._call_id = handle, call_id
        self.over = asyncio.Event()
        """Set by who holds the call, when it has ended."""
        self._ended: MeshError | None = None  # while it was in line, or later
        self._leaving: list[GoAway] = []  # until the caller can hear of it
        self._speaking: list[tuple[Session, Pipeline]] = []  # while there is speech, the one of this call
        self._listeners: Listeners | None = None  # likewise

    async def hold(self, inputs: AsyncIterator[Input], use: Use) -> AsyncGenerator[Event, None]:
        """The mesh's side of the call, which counts what it uses up. Raises MeshError."""
        origin = await find_origin(self._resources, self._opening, self._handle, self._call_id)
        logs.bind(origin.session_id, self._opening.traceparent, self._key_id)
        rows: Rows | None = None
        try:
            past, inputs = await self._past(origin, inputs)
            async with contextlib.aclosing(self._wait_and_open(origin, past)) as turns:
                async for turn in turns:
                    if isinstance(turn, Rows):
                        rows = turn
                    else:
                        yield turn
            assert rows is not None
            session = await origin.begin(rows.lm_ready.sampling)
            session.key_id = self._key_id
        except BaseException as error:
            if rows is not None:
                rows.close()
            origin.abandon(reason_of(error))
            raise
        ingest = self._ingest(rows, origin, len(past))
        listeners = Listeners(Listening(session.id, session.model_id, rows.codec_ready.codec_id,
                                        rows.audio.sample_rate_hertz, rows.audio.samples_per_frame,
                                        rows.lm_ready.delay_frames))
        pipeline = Pipeline(rows, ingest, self._observer, Turns(rows.codec_ready, rows.lm_ready, origin.history),
                            listeners.heard)

        def end(reason: str) -> None:
            may_go_on = reason not in (COMPLETED, CallTooLong.reason)
            session.end(reason, keep=may_go_on)
            listeners.end(reason, may_go_on=may_go_on)

        with reported(end), contextlib.closing(pipeline), self._told(session, pipeline, listeners):
            yield self._announce(rows, session, ingest)
            transcript = Transcript()
            direction = Direction(rows, ingest, pipeline, transcript, use)
            async with self._heard(session, pipeline, ingest, direction.audio(inputs)):
                frames_out = 0
                reading = Reading(rows.audio.frame_nanos / 1e9, self._opening.live, self._resources.stall_s)
                async for event in pipeline.converse():
                    if isinstance(event, Speech):
                        frames_out += 1
                        transcript.said(event.context.sequence, event.text)
                    elif isinstance(event, ConversationEvent) and event.kind is EventKind.INTERRUPTED:
                        transcript.cut(transcript.next_answer)
                    if isinstance(event, Speech | ConversationEvent):
                        listeners.tell(event)
                    offered = time.monotonic()
                    yield event
                    reading.took(time.monotonic() - offered)
            yield Summary(ingest.frames_heard, frames_out, ingest.frames_skipped)

    @property
    def speaks(self) -> bool:
        """Whether it is open."""
        return bool(self._speaking)

    async def written(self) -> None:
        """Wait until what was said so far is in the store, or can't be."""
        for session, _ in self._speaking:
            await session.flushed()

    def skip_none(self) -> None:
        """Skip no frame for some seconds: calls move, this one or others, so the engines have more to step."""
        for _, pipeline in self._speaking:
            pipeline.skip_none()

    def go_away(self, time_left_s: float) -> None:
        """Ask the caller to reconnect to another gateway, which can read the session from the store."""
        self._leaving.append(GoAway(time_left_s))
        self.skip_none()
        for _, pipeline in self._speaking:
            pipeline.tell(self._leaving[-1])

    def leave(self, replica: Replica) -> bool:
        """Let the call's rows at a replica try to move to others. Whether one tries."""
        return any([pipeline.leave(replica) for _, pipeline in self._speaking])

    def holds(self, name: str) -> bool:
        """Whether it is the live call of the session with this name."""
        return self._handle.name == name and any(not session.lost for session, _ in self._speaking)

    def listen(self, grant: Grant) -> AsyncGenerator[Listened, None]:
        """What happens in the call, while it is live. Raises PermissionDenied, TooManyListeners, CallNotHere."""
        grant.check(self._handle)
        assert self._listeners is not None
        return self._listeners.listen()

    def end(self, error: MeshError) -> None:
        """End the call with an error, after the answers that are there; one in line leaves it."""
        self._ended = self._ended or error
        for _, pipeline in self._speaking:
            pipeline.fail(error)

    async def _past(self, origin: Origin, inputs: AsyncIterator[Input]
                    ) -> tuple[Sequence[Pcm], AsyncIterator[Input]]:
        """What the encoder's row is opened with, of the audio that the caller does not wait with, and what comes after
        it. Raises InvalidRequest, SlowCaller.
        """
        asked = self._opening.origin
        if isinstance(asked, Resumed) and asked.past is not None:
            info = self._resources.fleet.codec.info(origin.model.codec_id)
            # What the model is yet to hear goes the usual way, and so does more than a row can take.
            frames = min(asked.past.frames, origin.history.next_sequence - asked.first_sequence)
            if asked.past.sample_rate_hertz == info.sample_rate_hertz and 0 < frames <= info.priming_frames:
                return await take_past(inputs, AudioFormat(info.sample_rate_hertz, info.samples_per_frame), frames)
        return (), inputs

    def _wait_and_open(self, origin: Origin, past: Sequence[Pcm]) -> AsyncGenerator[Queued | HasRoom | Rows, None]:
        def check() -> None:
            if self._ended is not None:
                raise self._ended
            if self._leaving:
                raise Draining(GATEWAY_STOPS)

        begins, asked = self._opening.begins, None

        async def begin() -> AsyncIterator[HasRoom]:
            nonlocal asked
            assert begins is not None
            if asked is None:
                yield HasRoom()
                asked = await begins()
            await set_prompt(origin, self._resources, asked)

        return rows_in_turn(self._resources, origin, self._call_id, self._opening.first_sequence, past, check,
                            begin if begins else None)

    def _ingest(self, rows: Rows, origin: Origin, frames_past: int) -> Ingest:
        """Where the caller's audio enters the path, after what the encoder has heard already."""
        return Ingest(rows.audio, self._observer, live=self._opening.live, delay_frames=rows.lm_ready.delay_frames,
                      first_sequence=self._opening.first_sequence + frames_past,
                      next_sequence=origin.history.next_sequence, ahead=origin.history.controls.ahead)

    def _announce(self, rows: Rows, session: Session, ingest: Ingest) -> Ready:
        """Tell the observer and the caller that the conversation is open. Raises SessionMoved."""
        if session.lost:  # another call has resumed the session while the rows were opened
            raise SessionMoved
        codec, lm, audio = rows.codec_ready, rows.lm_ready, rows.audio
        self._observer.opened(session.id, session.model_id, audio.frame_nanos)
        if isinstance(self._opening.origin, Resumed):
            self._observer.resumed(ingest.next_sequence)
        return Ready(
            session_id=session.id, model_id=session.model_id, codec_id=codec.codec_id,
            sample_rate_hertz=audio.sample_rate_hertz, samples_per_frame=audio.samples_per_frame,
            codebooks=lm.own_codebooks, delay_frames=lm.delay_frames, sampling=lm.sampling,
            resume_handle=session.handle, resume_grace_s=self._resources.sessions.grace_s,
            next_sequence=ingest.next_sequence, priming_frames=codec.priming_frames,
            frame_due_us=(codec.frame_phase_us - now_unix_nanos() // 1000) % (audio.frame_nanos // 1000))

    @contextlib.contextmanager
    def _told(self, session: Session, pipeline: Pipeline, listeners: Listeners) -> Iterator[None]:
        """Tell the caller what happens to the call from elsewhere, and let others listen to it."""
        def lost(error: MeshError) -> None:
            if self._leaving:  # as it was asked to: the new call catches up with this one
                asyncio.get_running_loop().call_later(HANDOVER_S, pipeline.fail, error)
            else:
                pipeline.fail(error)

        session.listen(Listener(lost=lost, resumable=lambda now: pipeline.tell(ResumeStatus(now))))
        self._speaking.append((session, pipeline))
        self._listeners = listeners
        if self._ended is not None:
            pipeline.fail(self._ended)
        for notice in self._leaving:
            pipeline.skip_none()
            pipeline.tell(notice)
        try:
            yield
        finally:
            self._speaking.clear()
            self._listeners = None

    @contextlib.asynccontextmanager
    async def _heard(self, session: Session, pipeline: Pipeline, ingest: Ingest, audio: AsyncIterator[Pcm]
                     ) -> AsyncIterator[None]:
        """Hear what the caller says, as long as it talks and a call may last."""
        longest_s = self._resources.longest_call_s
        last_call = asyncio.get_running_loop().call_later(
            longest_s - session.age_s, pipeline.fail, call_too_long(longest_s))
        tasks = [asyncio.create_task(ingest.read(audio)),
                 asyncio.create_task(self._end_when_idle(ingest, pipeline))]
        try:
            yield
        finally:
            last_call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end_when_idle(self, ingest: Ingest, pipeline: Pipeline) -> None:
        """End the call of a caller that no longer talks: others wait for its slots."""
        limit_s = left_s = self._resources.idle_s
        while left_s > 0:
            await asyncio.sleep(left_s)
            left_s = limit_s - ingest.idle_s
        pipeline.fail(IdleCaller(f"no audio for {limit_s:.0f} s; send silence to keep a call open"))
