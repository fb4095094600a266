"""One conversation: opened at a codec and a language model, held through what befalls them, and ended or kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.gateway.v1 import conversation_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.history import History
from services.gateway.ingest import AudioFormat, Ingest
from services.gateway.line import Line, Place
from services.gateway.memory import LmMemory
from services.gateway.pipeline import Pipeline
from services.gateway.replicas import DECODE, ENCODE, STEP, Replicas, common_model
from services.gateway.sessions import Session, Sessions
from services.gateway.stage import Change
from services.gateway.tracing import CallTrace
from services.mesh.errors import CallTooLong, InvalidRequest, MeshError, NoFreeSlot, SessionMoved

Response = conversation_pb2.ConverseResponse
_EVENTS = {Change.FAILED_OVER: "failover", Change.DRAINED: "drained"}  # in traces


@dataclass(frozen=True)
class Mesh:
    """What conversations share."""

    codec: Replicas
    lm: Replicas
    sessions: Sessions
    line: Line
    longest_call_s: float

    async def model(self) -> str:
        """The model of new conversations. Raises PeerLost, ModelMismatch."""
        try:
            return common_model((self.codec, self.lm))
        except MeshError:  # as of the last poll; a replica may just have come back
            await asyncio.gather(self.codec.refresh(), self.lm.refresh())
            return common_model((self.codec, self.lm))

    def slots(self, model_id: str) -> tuple[int, int]:
        """Conversations that this model's replicas can hold: in all, and besides those of now."""
        methods = ((self.codec, ENCODE), (self.lm, STEP), (self.codec, DECODE))
        return (min(pool.total(method.name, model_id) for pool, method in methods),
                min(pool.free(method.name, model_id) for pool, method in methods))


class Conversation:
    """One call of Converse."""

    def __init__(self, mesh: Mesh, session_id: str, config: conversation_pb2.ConverseConfig,
                 trace: CallTrace) -> None:
        self._mesh, self._config, self._trace = mesh, config, trace
        self._id = session_id
        self._notices: list[Response] = []  # go out before the next frame of speech; one for each thing that changes
        self._session: Session | None = None
        self._ingest: Ingest | None = None

    def go_away(self, time_left_s: float) -> None:
        """Ask the caller to reconnect to another gateway, which finds all of the session in the store."""
        self._notices.append(Response(go_away=conversation_pb2.GoAway(time_left_ms=round(time_left_s * 1000))))
        if self._session is not None:
            self._session.flush_soon()

    async def hold(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[Response, None]:
        """The mesh's side of the call, from the line or the ready message to the summary.

        `pieces` is the caller's audio. Raises MeshError.
        """
        loop = asyncio.get_running_loop()
        session, model_id = await self._resumed()
        pipeline: Pipeline | None = None
        reader: asyncio.Task[None] | None = None
        ended = "failed"
        try:
            memory = LmMemory(self._id, session.sampling if session else self._config.sampling,
                              session.history if session else None, self._new_history)
            # Who is cut off in the middle of a call goes before those who are new.
            waits = session is None and await self._mesh.line.anybody_waits()
            async with contextlib.AsyncExitStack() as in_line:
                place: Place | None = None
                while True:
                    if waits:
                        if place is None:
                            place = await in_line.enter_async_context(
                                self._mesh.line.join(self._id, ahead=session is not None))
                        async for queued in place.turns(lambda: self._mesh.slots(model_id)[1]):
                            yield Response(queued=queued)
                    pipeline = self._pipeline(model_id, memory)
                    try:
                        codec, lm = await pipeline.open()
                        break
                    except MeshError as error:
                        pipeline.close()
                        if error.reason != NoFreeSlot.reason:
                            raise
                        waits = True
                if place is not None:
                    place.served = True
            audio = self._audio_format(codec)
            assert memory.history is not None
            if session is None:
                session = self._mesh.sessions.create(self._id, model_id, lm.sampling, memory.history)
            if session.lost:  # somebody was faster, while the rows were opened
                raise SessionMoved("the conversation was taken up elsewhere with its resume handle")
            session.on_lost, session.on_available = pipeline.fail, self._resume_status
            self._session = session
            live = self._config.pacing != conversation_pb2.PACING_OFFLINE
            ingest = self._ingest = Ingest(audio, live, lm.delay_frames, self._config.first_sequence,
                                           memory.history.next_sequence)
            self._trace.opened(self._id, model_id, audio.frame_nanos if live else None)
            if self._config.resume_handle:
                self._trace.resumed(ingest.next_sequence)
            yield Response(ready=conversation_pb2.ConverseReady(
                session_id=self._id, model_id=model_id, sample_rate_hertz=codec.sample_rate_hertz,
                samples_per_frame=codec.samples_per_frame, codebooks=lm.own_codebooks, delay_frames=lm.delay_frames,
                sampling=lm.sampling, resume_handle=session.handle,
                resume_grace_ms=round(self._mesh.sessions.grace_s * 1000), next_sequence=ingest.next_sequence,
                priming_frames=codec.priming_frames))
            if not self._mesh.sessions.store.available:
                self._resume_status(False)
            reader = asyncio.create_task(ingest.read(pieces))
            until = loop.time() + self._mesh.longest_call_s
            frames_out = 0
            async for speech in pipeline.converse(ingest):
                while self._notices:
                    yield self._notices.pop(0)
                frames_out += 1
                yield Response(speech=conversation_pb2.SpeechFrame(
                    context=speech.context, pcm=audio.encode(speech.pcm), text=speech.text,
                    text_token=speech.text_token, codes=speech.codes, frames_skipped=ingest.frames_skipped))
                if loop.time() > until:
                    raise CallTooLong(f"a call may last {self._mesh.longest_call_s:.0f} s here; open a new one")
            ended = "completed"
            yield Response(summary=conversation_pb2.ConverseSummary(
                frames_in=ingest.frames_heard, frames_out=frames_out, frames_skipped=ingest.frames_skipped))
        except MeshError as error:
            ended = error.reason
            raise
        except (asyncio.CancelledError, GeneratorExit):
            ended = "cancelled"
            raise
        finally:
            if pipeline is not None:
                pipeline.close()
            if reader is not None:
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reader
            if session is not None:
                session.end(ended, keep=ended not in ("completed", CallTooLong.reason))
            self._trace.ended(ended, is_error=ended not in ("completed", "cancelled"))

    async def _resumed(self) -> tuple[Session | None, str]:
        """The session to go on with, if any, and the model."""
        config = self._config
        if not config.resume_handle:
            return None, await self._mesh.model()
        session = await self._mesh.sessions.take_up(config.resume_handle)
        self._id = session.id
        if config.HasField("answered_sequence"):
            session.history.rewind(config.answered_sequence + 1)
        return session, session.model_id

    def _new_history(self, lm: lm_pb2.StepReady) -> History:
        return History(lm.user_codebooks, lm.own_codebooks, lm.delay_frames, lm.context_frames)

    def _pipeline(self, model_id: str, memory: LmMemory) -> Pipeline:
        return Pipeline(self._id, model_id, self._mesh.codec, self._mesh.lm, memory, self._config.first_sequence,
                        self._mesh.codec.info(model_id).priming_frames, self._on_change,
                        self._trace)

    def _audio_format(self, codec: codec_pb2.EncodeReady) -> AudioFormat:
        rate = codec.sample_rate_hertz
        if self._config.sample_rate_hertz != rate:
            raise InvalidRequest("BAD_SAMPLE_RATE", f"the mesh speaks {rate} Hz, got {self._config.sample_rate_hertz}; "
                                 "resample your audio", field="config.sample_rate_hertz", accepted=rate)
        encoding = self._config.encoding or audio_pb2.AUDIO_ENCODING_PCM_F32LE
        return AudioFormat(rate, codec.samples_per_frame, encoding)

    def _resume_status(self, available: bool) -> None:
        self._notices.append(Response(resume_status=conversation_pb2.ResumeStatus(available=available)))

    def _on_change(self, service: str, change: Change) -> None:
        if change in _EVENTS:
            self._trace.event(_EVENTS[change], {"moshimesh.service": service})
        if self._ingest is not None and change is Change.LOST:
            self._ingest.hold()
        elif self._ingest is not None and change is Change.FAILED_OVER:
            self._ingest.release()
