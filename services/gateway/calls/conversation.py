"""One conversation: opened at a codec and a language model, held through what befalls them, and ended or kept."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.gateway.v1 import conversation_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.waiting import Line, Place
from services.gateway.path.ingest import AudioFormat, Ingest
from services.gateway.path.memory import LmMemory
from services.gateway.path.pipeline import Pipeline
from services.gateway.peers.replicas import DECODE, ENCODE, STEP, Replicas, common_model
from services.gateway.sessions.history import History
from services.gateway.sessions.sealing import Handle
from services.gateway.sessions.sessions import Session, Sessions
from services.gateway.watching.metering import CallMeter
from services.gateway.watching.tracing import CallTrace
from services.mesh.clock import now_unix_nanos
from services.mesh.errors import CallTooLong, Draining, IdleCaller, InvalidRequest, MeshError, NoFreeSlot, SessionMoved

Response = conversation_pb2.ConverseResponse


@dataclass(frozen=True)
class Mesh:
    """What conversations share."""

    codec: Replicas
    lm: Replicas
    sessions: Sessions
    line: Line
    longest_call_s: float
    idle_s: float

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

    def __init__(self, mesh: Mesh, handle: Handle, session_id: str, config: conversation_pb2.ConverseConfig,
                 trace: CallTrace, meter: CallMeter) -> None:
        self._mesh, self._handle, self._config, self._trace, self._meter = mesh, handle, config, trace, meter
        self._id = session_id
        self._notices: list[Response] = []  # what the caller should hear soon; one for each thing that changes
        self._leaving = False
        self._session: Session | None = None
        self._pipeline: Pipeline | None = None

    def go_away(self, time_left_s: float) -> None:
        """Ask the caller to reconnect to another gateway, which finds all of the session in the store."""
        self._leaving = True
        self._notice(Response(go_away=conversation_pb2.GoAway(time_left_ms=round(time_left_s * 1000))))
        if self._session is not None:
            self._session.flush_soon()

    def end(self, error: MeshError) -> None:
        """End the call with an error, after the answers that are there."""
        if self._pipeline is not None:
            self._pipeline.fail(error)

    async def hold(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[Response, None]:
        """The mesh's side of the call, from the line or the ready message to the summary.

        `pieces` is the caller's audio. Raises MeshError.
        """
        session, model_id = await self._resumed()
        tasks: list[asyncio.Task[None]] = []
        last_call: asyncio.TimerHandle | None = None
        ended = "failed"
        try:
            memory = LmMemory(self._id, session.sampling if session else self._config.sampling,
                              session.history if session else None, self._new_history)
            async with contextlib.AsyncExitStack() as in_line:
                place: Place | None = None
                # Who is cut off in the middle of a call goes before those who are new.
                waits = session is None and await self._mesh.line.anybody_waits(model_id)
                while True:
                    if waits:
                        if place is None:
                            place = await in_line.enter_async_context(
                                self._mesh.line.join(model_id, self._id, ahead=session is not None))
                        async for queued in place.turns(lambda: self._free(model_id)):
                            yield Response(queued=queued)
                    pipeline = self._pipeline = Pipeline(
                        self._id, model_id, self._mesh.codec, self._mesh.lm, memory, self._config.first_sequence,
                        self._mesh.codec.info(model_id).priming_frames, self._trace, self._meter)
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
                session = self._mesh.sessions.create(self._handle, self._id, model_id, lm.sampling, memory.history)
            if session.lost:  # somebody was faster, while the rows were opened
                raise SessionMoved("the conversation was taken up elsewhere with its resume handle")
            session.on_lost, session.on_available = pipeline.fail, self._resume_status
            self._session = session
            live = self._config.pacing != conversation_pb2.PACING_OFFLINE
            ingest = Ingest(audio, live, lm.delay_frames, self._config.first_sequence, memory.history.next_sequence)
            self._trace.opened(self._id, model_id, audio.frame_nanos if live else None)
            if self._config.resume_handle:
                self._trace.resumed(ingest.next_sequence)
            yield Response(ready=conversation_pb2.ConverseReady(
                session_id=self._id, model_id=model_id, sample_rate_hertz=codec.sample_rate_hertz,
                samples_per_frame=codec.samples_per_frame, codebooks=lm.own_codebooks, delay_frames=lm.delay_frames,
                sampling=lm.sampling, resume_handle=session.handle,
                resume_grace_ms=round(self._mesh.sessions.grace_s * 1000), next_sequence=ingest.next_sequence,
                priming_frames=codec.priming_frames,
                frame_due_us=(codec.frame_phase_us - now_unix_nanos() // 1000) % (audio.frame_nanos // 1000)))
            if not self._mesh.sessions.store.available:
                self._resume_status(False)
            self._meter.begin(audio, ingest)
            tasks = [asyncio.create_task(ingest.read(self._meter.listen(pieces))),
                     asyncio.create_task(self._end_when_idle(ingest, pipeline))]
            last_call = asyncio.get_running_loop().call_later(
                max(session.began + self._mesh.longest_call_s - time.time(), 0), pipeline.fail,
                CallTooLong(f"a call may last {self._mesh.longest_call_s:.0f} s here; open a new one"))
            frames_out = 0
            async for speech in pipeline.converse(ingest):
                while self._notices:
                    yield self._notices.pop(0)
                if speech is None:
                    continue
                frames_out += 1
                yield Response(speech=conversation_pb2.SpeechFrame(
                    context=speech.context, pcm=audio.encode(speech.pcm), text=speech.text,
                    text_token=speech.text_token, codes=speech.codes, frames_skipped=ingest.frames_skipped))
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
            if self._pipeline is not None:
                self._pipeline.close()
            if last_call is not None:
                last_call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if session is not None:
                session.end(ended, keep=ended not in ("completed", CallTooLong.reason))
            self._trace.ended(ended, is_error=ended not in ("completed", "cancelled"))

    async def _resumed(self) -> tuple[Session | None, str]:
        """The session to go on with, if any, and the model."""
        config = self._config
        if not config.resume_handle:
            return None, await self._mesh.model()
        session = await self._mesh.sessions.take_up(self._handle)
        self._id = session.id
        if config.HasField("answered_sequence"):
            try:
                session.history.rewind(config.answered_sequence + 1)
            except ValueError as error:
                session.end("failed", keep=True)
                raise InvalidRequest("BAD_SEQUENCE", str(error), field="config.answered_sequence") from None
        return session, session.model_id

    async def _end_when_idle(self, ingest: Ingest, pipeline: Pipeline) -> None:
        """The slots belong to those who talk."""
        limit_s = left_s = self._mesh.idle_s
        while left_s > 0:
            await asyncio.sleep(left_s)
            left_s = limit_s - ingest.idle_s
        pipeline.fail(IdleCaller(f"no audio for {limit_s:.0f} s; send silence to keep a call open"))

    def _new_history(self, lm: lm_pb2.StepReady) -> History:
        return History(lm.user_codebooks, lm.own_codebooks, lm.delay_frames, lm.context_frames)

    def _free(self, model_id: str) -> int:
        """Slots for those who wait. Raises Draining when it will not be here that they get one."""
        if self._leaving:
            raise Draining("this gateway is stopping; connect again to reach another one")
        return self._mesh.slots(model_id)[1]

    def _audio_format(self, codec: codec_pb2.EncodeReady) -> AudioFormat:
        rate = codec.sample_rate_hertz
        if self._config.sample_rate_hertz != rate:
            raise InvalidRequest("BAD_SAMPLE_RATE", f"the mesh speaks {rate} Hz, got {self._config.sample_rate_hertz}; "
                                 "resample your audio", field="config.sample_rate_hertz", accepted=rate)
        encoding = self._config.encoding or audio_pb2.AUDIO_ENCODING_PCM_F32LE
        return AudioFormat(rate, codec.samples_per_frame, encoding)

    def _resume_status(self, available: bool) -> None:
        self._notice(Response(resume_status=conversation_pb2.ResumeStatus(available=available)))

    def _notice(self, response: Response) -> None:
        self._notices.append(response)
        if self._pipeline is not None:
            self._pipeline.nudge()
