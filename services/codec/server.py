"""The codec's gRPC face: frames in, frames out, for as many sessions as there are slots."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import numpy as np
import numpy.typing as npt
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2, codec_pb2_grpc

from services.mesh.batching import Batcher, Timing
from services.mesh.errors import InvalidRequest
from services.mesh.samples import check_samples
from services.mesh.serving import (
    Context,
    check_frame_codes,
    check_session_id,
    read_config_message,
    read_payloads,
    stream,
)
from services.mesh.telemetry import FrameTracer
from services.mesh.timings import answer_context
from services.mesh.tunnel import TunnelServer

if TYPE_CHECKING:  # this file speaks gRPC, that one torch
    from services.codec.engine import CodecFacts, DecodeEngine, EncodeEngine

Pcm = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]
DESCRIPTOR = codec_pb2.DESCRIPTOR.services_by_name["CodecService"]


@dataclass(frozen=True)
class PcmItem:
    """One frame to encode: its audio [samples], its context, and whether to clear the row behind it."""

    pcm: Pcm
    context: audio_pb2.FrameContext
    clear_after: bool


@dataclass(frozen=True)
class CodesItem:
    """One frame to decode: its codes [codebooks] and its context."""

    codes: Sequence[int]
    context: audio_pb2.FrameContext


class EncodeStepper:
    """Lets a batcher drive the encoder."""

    def __init__(self, engine: EncodeEngine) -> None:
        self.slots = engine.slots
        self._engine = engine

    def open(self, row: int, settings: None) -> None:
        """Clear a row."""
        self._engine.open(row)

    def step(self, rows: Sequence[int], items: Sequence[PcmItem]) -> Sequence[tuple[PcmItem, list[int]]]:
        """Each item with its codes."""
        codes: list[list[int]] = self._engine.step(rows, np.stack([item.pcm for item in items])).tolist()
        for row, item in zip(rows, items, strict=True):
            if item.clear_after:
                self._engine.open(row)
        return list(zip(items, codes, strict=True))


class DecodeStepper:
    """Lets a batcher drive the decoder."""

    def __init__(self, engine: DecodeEngine) -> None:
        self.slots = engine.slots
        self._engine = engine

    def open(self, row: int, settings: None) -> None:
        """Clear a row."""
        self._engine.open(row)

    def step(self, rows: Sequence[int], items: Sequence[CodesItem]) -> Sequence[tuple[CodesItem, bytes]]:
        """Each item with its audio as little-endian floats."""
        pcm = self._engine.step(rows, np.array([item.codes for item in items], dtype=np.int64))
        return [(item, row.astype("<f4", copy=False).tobytes()) for item, row in zip(items, pcm, strict=True)]


class CodecServer(codec_pb2_grpc.CodecServiceServicer):
    """Encode and Decode over two engines that share their weights."""

    full_name = DESCRIPTOR.full_name

    def __init__(self, encoder: EncodeEngine, decoder: DecodeEngine, model_id: str, tracer: FrameTracer,
                 stall_s: float) -> None:
        self.stall_s = stall_s
        self._tunnel = TunnelServer(self, DESCRIPTOR)
        self.facts: CodecFacts = encoder.facts
        self._model_id = model_id
        self._tracer = tracer
        self._encode: Batcher[None, PcmItem, tuple[PcmItem, list[int]]] = Batcher(
            "encode", EncodeStepper(encoder), gather=True)
        self._decode: Batcher[None, CodesItem, tuple[CodesItem, bytes]] = Batcher("decode", DecodeStepper(decoder))

    def register(self, server: grpc.aio.Server) -> None:
        """Add the handlers to a server."""
        codec_pb2_grpc.add_CodecServiceServicer_to_server(self, server)
        self._tunnel.register(server)

    def drain(self) -> None:
        """Take nobody new."""
        self._tunnel.drain()
        self._encode.draining = self._decode.draining = True

    async def close(self) -> None:
        """Stop both engines."""
        await self._encode.close()
        await self._decode.close()
        self._tracer.close()

    async def GetInfo(self, request: codec_pb2.GetInfoRequest, context: Context) -> codec_pb2.GetInfoResponse:
        """Facts about the codec, and its room."""
        return codec_pb2.GetInfoResponse(
            model_id=self._model_id, sample_rate_hertz=self.facts.sample_rate_hertz,
            samples_per_frame=self.facts.samples_per_frame, codebooks=self.facts.codebooks,
            cardinality=self.facts.cardinality, encode_slots_total=self._encode.total,
            encode_slots_free=self._encode.free, decode_slots_total=self._decode.total,
            decode_slots_free=self._decode.free)

    @stream
    async def Encode(self, requests: AsyncIterator[codec_pb2.EncodeRequest], context: Context
                     ) -> AsyncIterator[codec_pb2.EncodeResponse]:
        """One session's audio to codes."""
        config: codec_pb2.EncodeConfig = await read_config_message(requests)
        session_id = check_session_id(config.session_id)
        frames = 0
        with self._encode.lease(session_id, None) as slot:
            yield codec_pb2.EncodeResponse(ready=codec_pb2.EncodeReady(
                model_id=self._model_id, sample_rate_hertz=self.facts.sample_rate_hertz,
                samples_per_frame=self.facts.samples_per_frame, codebooks=self.facts.codebooks,
                cardinality=self.facts.cardinality))
            async for answer in slot.serve(self._pcm_items(requests, config.reset_after_first_frame)):
                item, codes = answer.result
                frames += 1
                yield codec_pb2.EncodeResponse(frame=audio_pb2.CodeFrame(
                    context=self._record("codec.encode", audio_pb2.HOP_CODEC_ENCODE, item.context, answer.timing),
                    codes=codes))
        yield codec_pb2.EncodeResponse(summary=codec_pb2.EncodeSummary(frames=frames))

    @stream
    async def Decode(self, requests: AsyncIterator[codec_pb2.DecodeRequest], context: Context
                     ) -> AsyncIterator[codec_pb2.DecodeResponse]:
        """One session's codes to audio."""
        config: codec_pb2.DecodeConfig = await read_config_message(requests)
        session_id = check_session_id(config.session_id)
        frames = 0
        with self._decode.lease(session_id, None) as slot:
            yield codec_pb2.DecodeResponse(ready=codec_pb2.DecodeReady(
                model_id=self._model_id, sample_rate_hertz=self.facts.sample_rate_hertz,
                samples_per_frame=self.facts.samples_per_frame, codebooks=self.facts.codebooks,
                cardinality=self.facts.cardinality))
            async for answer in slot.serve(self._codes_items(requests)):
                item, pcm = answer.result
                frames += 1
                yield codec_pb2.DecodeResponse(frame=audio_pb2.PcmFrame(
                    context=self._record("codec.decode", audio_pb2.HOP_CODEC_DECODE, item.context, answer.timing),
                    pcm=pcm))
        yield codec_pb2.DecodeResponse(summary=codec_pb2.DecodeSummary(frames=frames))

    async def _pcm_items(self, requests: AsyncIterator[codec_pb2.EncodeRequest], reset_after_first: bool
                         ) -> AsyncIterator[PcmItem]:
        clear_after = reset_after_first
        async for frame in read_payloads(requests, "frame"):
            yield PcmItem(self._checked_pcm(frame.pcm), frame.context, clear_after)
            clear_after = False

    async def _codes_items(self, requests: AsyncIterator[codec_pb2.DecodeRequest]) -> AsyncIterator[CodesItem]:
        async for frame in read_payloads(requests, "frame"):
            check_frame_codes(frame.codes, self.facts.codebooks, self.facts.cardinality)
            yield CodesItem(frame.codes, frame.context)

    def _checked_pcm(self, data: bytes) -> Pcm:
        """One frame's samples [samples_per_frame], or what is wrong with them."""
        expected = self.facts.samples_per_frame * 4
        if len(data) != expected:
            raise InvalidRequest("BAD_PCM", f"a frame must have {self.facts.samples_per_frame} float samples "
                                 f"({expected} bytes), got {len(data)} bytes", field="frame.pcm", accepted=expected)
        pcm = np.frombuffer(data, dtype="<f4")
        check_samples(pcm, "frame.pcm")
        return pcm

    def _record(self, name: str, hop: audio_pb2.Hop, context: audio_pb2.FrameContext, timing: Timing
                ) -> audio_pb2.FrameContext:
        """The answer's context, after a span for the hop if the frame is traced."""
        self._tracer.hop(name, context, timing)
        return answer_context(context, hop, timing)
