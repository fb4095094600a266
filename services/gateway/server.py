"""The gateway's gRPC face: conversations."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator

import grpc
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2, codec_pb2_grpc
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc

from services.gateway.ingest import AudioFormat, Ingest
from services.gateway.pipeline import Pipeline
from services.gateway.sessions import SessionStore
from services.gateway.tracing import CallTrace
from services.gateway.tunnel import Tunnel
from services.mesh.errors import (
    Draining,
    IdleCaller,
    InvalidRequest,
    MeshError,
    ModelMismatch,
    UnknownSession,
    from_rpc_error,
)
from services.mesh.serving import Context, next_within, read_config_message, read_payloads, stream
from services.mesh.telemetry import FrameTracer

FULL_NAME = conversation_pb2.DESCRIPTOR.services_by_name["ConversationService"].full_name
NOTE_EVERY_FRAMES = 12  # about a second


class GatewayServer(conversation_pb2_grpc.ConversationServiceServicer):
    """Converse over one codec and one language model service."""

    full_name = FULL_NAME

    def __init__(self, codec: grpc.aio.Channel, lm: grpc.aio.Channel, sessions: SessionStore, tracer: FrameTracer,
                 stall_s: float, idle_s: float, trace_one_in: int) -> None:
        self.stall_s = stall_s
        self._idle_s = idle_s
        self._codec = codec_pb2_grpc.CodecServiceStub(codec)
        self._lm = lm_pb2_grpc.LmServiceStub(lm)
        self._codec_tunnel = Tunnel("codec", codec)
        self._lm_tunnel = Tunnel("lm", lm)
        self._sessions = sessions
        self._tracer = tracer
        self._trace_one_in = trace_one_in
        self._draining = False

    def register(self, server: grpc.aio.Server) -> None:
        """Add the handlers to a server."""
        conversation_pb2_grpc.add_ConversationServiceServicer_to_server(self, server)

    def drain(self) -> None:
        """Take nobody new."""
        self._draining = True

    async def close(self) -> None:
        """Write the last records and spans."""
        await self._sessions.close()
        self._tracer.close()

    async def GetInfo(self, request: conversation_pb2.GetInfoRequest, context: Context
                      ) -> conversation_pb2.GetInfoResponse:
        """Facts about the mesh, and its room."""
        try:
            codec, lm = await asyncio.gather(self._codec.GetInfo(codec_pb2.GetInfoRequest()),
                                             self._lm.GetInfo(lm_pb2.GetInfoRequest()))
        except grpc.aio.AioRpcError as error:
            await from_rpc_error(error, "codec or lm").abort(context)
        return conversation_pb2.GetInfoResponse(
            model_id=lm.model_id, sample_rate_hertz=codec.sample_rate_hertz, samples_per_frame=codec.samples_per_frame,
            slots_total=min(codec.encode_slots_total, codec.decode_slots_total, lm.slots_total),
            slots_free=min(codec.encode_slots_free, codec.decode_slots_free, lm.slots_free))

    @stream
    async def Converse(self, requests: AsyncIterator[conversation_pb2.ConverseRequest], context: Context
                       ) -> AsyncIterator[conversation_pb2.ConverseResponse]:
        """One conversation."""
        config: conversation_pb2.ConverseConfig = await read_config_message(requests)
        encoding = _checked_encoding(config)
        if config.pacing not in conversation_pb2.Pacing.values():
            raise InvalidRequest("BAD_PACING", f"pacing {config.pacing} is not one that this mesh knows",
                                 field="config.pacing")
        if config.resume_handle:
            raise UnknownSession("this mesh keeps no conversation with that resume_handle; open a new one without it",
                                 field="config.resume_handle")
        if self._draining:
            raise Draining("this gateway is stopping; connect again to reach another one")
        session_id = secrets.token_hex(16)
        trace = CallTrace(self._tracer, session_id, config.traceparent, self._trace_one_in)
        pipeline = Pipeline(session_id, self._codec_tunnel, self._lm_tunnel, config.sampling)
        reader: asyncio.Task[None] | None = None
        ended = "failed"
        try:
            codec, lm = await pipeline.open()
            _check_match(config, codec, lm)
            audio = AudioFormat(codec.sample_rate_hertz, codec.samples_per_frame, encoding)
            ingest = Ingest(audio, config.pacing != conversation_pb2.PACING_OFFLINE, lm.delay_frames)
            self._sessions.note(session_id, state="live", model=lm.model_id, started=round(time.time(), 3),
                                seed=lm.sampling.seed, sequence=-1)
            yield conversation_pb2.ConverseResponse(ready=conversation_pb2.ConverseReady(
                session_id=session_id, model_id=lm.model_id, sample_rate_hertz=codec.sample_rate_hertz,
                samples_per_frame=codec.samples_per_frame, codebooks=lm.own_codebooks, delay_frames=lm.delay_frames,
                sampling=lm.sampling))
            reader = asyncio.create_task(ingest.read(self._pieces(requests)))
            frames_out = 0
            async for speech in pipeline.converse(ingest, trace):
                frames_out += 1
                if not frames_out % NOTE_EVERY_FRAMES:
                    self._sessions.note(session_id, sequence=speech.context.sequence)
                yield conversation_pb2.ConverseResponse(speech=conversation_pb2.SpeechFrame(
                    context=speech.context, pcm=audio.encode(speech.pcm), text=speech.text,
                    text_token=speech.text_token, codes=speech.codes, frames_skipped=ingest.frames_skipped))
            ended = "completed"
            yield conversation_pb2.ConverseResponse(summary=conversation_pb2.ConverseSummary(
                frames_in=ingest.frames_heard, frames_out=frames_out, frames_skipped=ingest.frames_skipped))
        except MeshError as error:
            ended = error.reason
            raise
        except (asyncio.CancelledError, GeneratorExit):
            ended = "cancelled"
            raise
        finally:
            pipeline.close()
            if reader is not None:
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reader
            trace.close()
            self._sessions.note(session_id, state="ended", ended=ended)

    async def _pieces(self, requests: AsyncIterator[conversation_pb2.ConverseRequest]) -> AsyncIterator[bytes]:
        """The caller's audio. Raises IdleCaller when none comes for idle_s: the slots belong to those who talk."""
        chunks = read_payloads(requests, "audio")
        while True:
            try:
                chunk: conversation_pb2.AudioChunk = await next_within(chunks, self._idle_s)
            except StopAsyncIteration:
                return
            except (asyncio.TimeoutError, TimeoutError):
                raise IdleCaller(f"no audio for {self._idle_s:.0f} s; send silence to keep a call open") from None
            yield chunk.pcm


def _checked_encoding(config: conversation_pb2.ConverseConfig) -> audio_pb2.AudioEncoding:
    if config.encoding == audio_pb2.AUDIO_ENCODING_UNSPECIFIED:
        return audio_pb2.AUDIO_ENCODING_PCM_F32LE
    if config.encoding not in audio_pb2.AudioEncoding.values():
        raise InvalidRequest("BAD_ENCODING", f"encoding {config.encoding} is not one that this mesh knows",
                             field="config.encoding")
    return config.encoding


def _check_match(config: conversation_pb2.ConverseConfig, codec: codec_pb2.EncodeReady, lm: lm_pb2.StepReady) -> None:
    if codec.model_id != lm.model_id:
        raise ModelMismatch(f"codec serves {codec.model_id} but lm serves {lm.model_id}; start both with one "
                            "checkpoint")
    if config.sample_rate_hertz != codec.sample_rate_hertz:
        raise InvalidRequest("BAD_SAMPLE_RATE", f"the mesh speaks {codec.sample_rate_hertz} Hz, got "
                             f"{config.sample_rate_hertz}; resample your audio", field="config.sample_rate_hertz",
                             accepted=codec.sample_rate_hertz)
