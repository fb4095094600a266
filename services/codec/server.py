"""The codec's gRPC face: frames in, frames out, for as many sessions as there are slots."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.tunnel.v1 import tunnel_pb2

from services.codec.codes import MISSING
from services.mesh import logs
from services.mesh.batching import USUAL, Batcher, BatchingOptions, Slot
from services.mesh.errors import InvalidRequest
from services.mesh.gathering import Gathering
from services.mesh.incoming import Incoming, Sender, read_config_message, read_payload, read_payloads
from services.mesh.recorder import HopRecorder
from services.mesh.samples import FULL_SCALE, check_frame_codes, check_samples, check_session_id
from services.mesh.serving import Service
from services.mesh.telemetry import FrameTracer
from services.mesh.timings import Timing, answer_context, check_context
from services.mesh.tunnel import TunnelServer

if TYPE_CHECKING:  # this file speaks gRPC, that one torch
    from services.codec.engine import CodecFacts, DecodeEngine, EncodeEngine

Pcm = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]
Frame = Pcm | Codes
SAMPLE_TYPES = {audio_pb2.AUDIO_ENCODING_UNSPECIFIED: "<f4", audio_pb2.AUDIO_ENCODING_PCM_F32LE: "<f4",
                audio_pb2.AUDIO_ENCODING_PCM_S16LE: "<i2"}
SILENT_FRAMES = 50  # 4 s of zeros: the bundled codec's codes of them settle within 20 frames
DESCRIPTOR = codec_pb2.DESCRIPTOR.services_by_name["CodecService"]


@dataclass(frozen=True)
class Item:
    """One frame: its samples or codes, its context, and whether to clear the row after it."""

    frame: Frame
    context: audio_pb2.FrameContext
    clear_after: bool = False


class CodecStepper:
    """Lets a batcher drive the encoder or the decoder."""

    def __init__(self, engine: EncodeEngine | DecodeEngine) -> None:
        self.slots = engine.slots
        self._engine: Any = engine  # either's frames are what its own session brings

    def open(self, row: int, past: Frame) -> Iterator[None]:
        """Clear a row, and let it hear its session's past frames [frames, ...]."""
        self._engine.open(row)
        yield from self._engine.prime(row, past)

    def step(self, rows: Sequence[int], items: Sequence[Item]) -> Sequence[tuple[Item, Frame]]:
        """Each item with what its frame became: the codes of samples, or the samples of codes."""
        answers = self._engine.step(rows, np.stack([item.frame for item in items]))
        for row, item in zip(rows, items, strict=True):
            if item.clear_after:
                self._engine.open(row)
        return list(zip(items, answers, strict=True))


class CodecServer:
    """Encode and Decode, each over an engine of its own."""

    def __init__(self, encoder: EncodeEngine, decoder: DecodeEngine, codec_id: str, tracer: FrameTracer,
                 stall_s: float, options: BatchingOptions = USUAL, speech_table: bytes = b"") -> None:
        """`speech_table`: see EncodeReady."""
        service = Service(DESCRIPTOR, {"GetInfo": self.get_info, "Encode": self.encode, "Decode": self.decode}, stall_s)
        self._instance_id = str(uuid.uuid4())
        self._tunnel = TunnelServer(service, self._keep)
        self.services = (service, self._tunnel.service)
        # One number for both halves: theirs may differ by a frame or two.
        priming_frames = max(encoder.facts.priming_frames, decoder.facts.priming_frames)
        self.facts: CodecFacts = replace(encoder.facts, priming_frames=priming_frames)
        self._announced: dict[str, Any] = {
            "codec_id": codec_id, "sample_rate_hertz": self.facts.sample_rate_hertz,
            "samples_per_frame": self.facts.samples_per_frame, "codebooks": self.facts.codebooks,
            "cardinality": self.facts.cardinality, "priming_frames": priming_frames}
        self._speech_table = speech_table
        self._silence_codes = _silence_codes(encoder, self.facts)
        self._tracer = tracer
        self._encode: Batcher[Frame, Item, tuple[Item, Frame]] = Batcher(
            "encode", CodecStepper(encoder), options,
            Gathering(self.facts.samples_per_frame * 1_000_000_000 // self.facts.sample_rate_hertz))
        self._decode: Batcher[Frame, Item, tuple[Item, Frame]] = Batcher(
            "decode", CodecStepper(decoder), options)
        self._recorders = {hop: HopRecorder(tracer, hop, batcher.total, codec_id, batcher.recent)
                           for hop, batcher in ((audio_pb2.HOP_CODEC_ENCODE, self._encode),
                                                (audio_pb2.HOP_CODEC_DECODE, self._decode))}

    @property
    def batchers(self) -> Sequence[Batcher[Any, Any, Any]]:
        """The batchers that run its engines, to be measured."""
        return (self._encode, self._decode)

    def drain(self) -> None:
        """Take no new sessions."""
        self._tunnel.drain()
        self._encode.draining = self._decode.draining = True

    async def close(self) -> None:
        """Stop both engines."""
        await self._encode.close()
        await self._decode.close()
        self._tracer.close()

    async def get_info(self, request: codec_pb2.GetInfoRequest, sender: Sender) -> codec_pb2.GetInfoResponse:
        """Facts about the codec, and its room."""
        return codec_pb2.GetInfoResponse(
            encode_slots_total=self._encode.total, encode_slots_free=self._encode.free,
            decode_slots_total=self._decode.total, decode_slots_free=self._decode.free,
            draining=self._encode.draining, instance_id=self._instance_id, silence_codes=self._silence_codes,
            **self._announced)

    async def encode(self, requests: Incoming[codec_pb2.EncodeRequest]
                     ) -> AsyncGenerator[codec_pb2.EncodeResponse, None]:
        """One session's audio to codes."""
        config: codec_pb2.EncodeConfig = await read_config_message(requests)
        session_id = check_session_id(config.session_id)
        logs.bind(session_id)
        codebooks = self._codebooks(config.codebooks)
        past = await self._pcm_past(requests, config.past_frames)
        # With a past, the first frame to come is not the session's first.
        items = self._pcm_items(requests, clear_after_first=config.reset_after_first_frame and not len(past))
        frames = 0
        with self._encode.lease(session_id, past) as slot:
            await slot.opened()
            yield codec_pb2.EncodeResponse(ready=codec_pb2.EncodeReady(
                frame_phase_us=slot.phase_nanos // 1000, speech_table=self._speech_table,
                silence_codes=self._silence_codes,
                **self._announced | {"codebooks": codebooks}))
            async for answer in slot.serve(items):
                item, codes = answer.result
                frames += 1
                yield codec_pb2.EncodeResponse(frame=audio_pb2.CodeFrame(
                    context=self._record(audio_pb2.HOP_CODEC_ENCODE, item.context, answer.timing, slot),
                    codes=codes[:codebooks].tolist()))
        yield codec_pb2.EncodeResponse(summary=codec_pb2.EncodeSummary(frames=frames))

    async def decode(self, requests: Incoming[codec_pb2.DecodeRequest]
                     ) -> AsyncGenerator[codec_pb2.DecodeResponse, None]:
        """One session's codes to audio."""
        config: codec_pb2.DecodeConfig = await read_config_message(requests)
        session_id = check_session_id(config.session_id)
        logs.bind(session_id)
        codebooks = self._codebooks(config.codebooks)
        frames = 0
        with self._decode.lease(session_id, self._codes_past(config.priming_codes, codebooks)) as slot:
            await slot.opened()
            yield codec_pb2.DecodeResponse(ready=codec_pb2.DecodeReady(**self._announced | {"codebooks": codebooks}))
            async for answer in slot.serve(self._codes_items(requests, codebooks)):
                item, pcm = answer.result
                frames += 1
                yield codec_pb2.DecodeResponse(frame=audio_pb2.PcmFrame(
                    context=self._record(audio_pb2.HOP_CODEC_DECODE, item.context, answer.timing, slot),
                    pcm=pcm.astype("<f4", copy=False).tobytes()))
        yield codec_pb2.DecodeResponse(summary=codec_pb2.DecodeSummary(frames=frames))

    async def _pcm_items(self, requests: AsyncIterator[codec_pb2.EncodeRequest], clear_after_first: bool
                         ) -> AsyncIterator[Item]:
        clear_after = clear_after_first
        async for frame in read_payloads(requests, "frame"):
            yield Item(self._checked_pcm(frame.pcm), check_context(frame.context), clear_after)
            clear_after = False

    async def _codes_items(self, requests: AsyncIterator[codec_pb2.DecodeRequest], codebooks: int
                           ) -> AsyncIterator[Item]:
        async for frame in read_payloads(requests, "frame"):
            check_frame_codes(frame.codes, codebooks, self.facts.cardinality)
            yield Item(self._filled_up(np.array(frame.codes, np.int64)), check_context(frame.context))

    def _codebooks(self, asked: int) -> int:
        """How many codes a session's frames have. Raises InvalidRequest."""
        if asked > self.facts.codebooks:
            raise InvalidRequest("BAD_CODES", f"codebooks must be at most {self.facts.codebooks}, got {asked}",
                                 field="config.codebooks", accepted=f"0..{self.facts.codebooks}")
        return asked or self.facts.codebooks

    async def _pcm_past(self, requests: AsyncIterator[codec_pb2.EncodeRequest], frames: int) -> Pcm:
        """The frames that a session brings to the encoder, [frames, samples_per_frame]. Raises MeshError."""
        samples, most = self.facts.samples_per_frame, self.facts.priming_frames
        if frames > most:
            raise InvalidRequest("BAD_PCM", f"past_frames must be at most {most}, got {frames}",
                                 field="config.past_frames", accepted=f"0..{most}")
        parts: list[Pcm] = [np.empty((0, samples), np.float32)]
        missing = frames
        while missing:
            past = await read_payload(requests, "past")
            kind = SAMPLE_TYPES.get(past.encoding)
            if kind is None:
                raise InvalidRequest("BAD_PCM", f"there is no encoding {past.encoding}", field="past.encoding")
            whole, rest = divmod(len(past.pcm), samples * np.dtype(kind).itemsize)
            if rest or not 1 <= whole <= missing:
                raise InvalidRequest("BAD_PCM", f"past.pcm must be 1 to {missing} whole frames of {samples} samples, "
                                     f"got {len(past.pcm)} bytes", field="past.pcm", accepted=f"1..{missing} frames")
            part: Pcm = np.frombuffer(past.pcm, kind).reshape(whole, samples).astype(np.float32)
            if kind == "<i2":
                part /= FULL_SCALE
            check_samples(part, "past.pcm")
            parts.append(part)
            missing -= whole
        return np.concatenate(parts)

    def _codes_past(self, codes: Sequence[int], codebooks: int) -> Codes:
        """The frames that a session brings to the decoder, [frames, all codebooks]. Raises InvalidRequest."""
        field, most = "config.priming_codes", self.facts.priming_frames
        frames, rest = divmod(len(codes), codebooks)
        if frames > most or rest:
            raise InvalidRequest("BAD_CODES", f"priming_codes must be at most {most} frames of {codebooks} codes, got "
                                 f"{len(codes)} codes", field=field, accepted=f"0..{most * codebooks}")
        if frames:
            check_frame_codes(codes, len(codes), self.facts.cardinality, field)
        return self._filled_up(np.array(codes, np.int64).reshape(frames, codebooks))

    def _filled_up(self, codes: Codes) -> Codes:
        """Frames of codes [..., codebooks] of a session, with those that it does not have."""
        filled = np.full((*codes.shape[:-1], self.facts.codebooks), MISSING, np.int64)
        filled[..., :codes.shape[-1]] = codes
        return filled

    def _checked_pcm(self, data: bytes) -> Pcm:
        """One frame's samples [samples_per_frame], or what is wrong with them."""
        expected = self.facts.samples_per_frame * 4
        if len(data) != expected:
            raise InvalidRequest("BAD_PCM", f"a frame must have {self.facts.samples_per_frame} float samples "
                                 f"({expected} bytes), got {len(data)} bytes", field="frame.pcm", accepted=expected)
        pcm = np.frombuffer(data, dtype="<f4")
        check_samples(pcm, "frame.pcm")
        return pcm

    def _keep(self, keep: tunnel_pb2.Keep) -> None:
        """Send the spans of a frame that was here."""
        if keep.hop in self._recorders:
            self._recorders[keep.hop].keep(keep)

    def _record(self, hop: audio_pb2.Hop, context: audio_pb2.FrameContext, timing: Timing,
                slot: Slot[Item, tuple[Item, Frame]]) -> audio_pb2.FrameContext:
        """The answer's context, after the hop's recorder has seen it."""
        self._recorders[hop].record(context, timing, slot.row, slot.tenant)
        return answer_context(context, hop, timing)


def _silence_codes(encoder: EncodeEngine, facts: CodecFacts) -> list[int]:
    """What the codec makes of zeros, once it has heard some. Its first row is clear again then."""
    silence = np.zeros((SILENT_FRAMES, facts.samples_per_frame), np.float32)
    encoder.open(0)
    for _ in encoder.prime(0, silence):
        pass
    codes: list[int] = encoder.step([0], silence[:1])[0].tolist()
    encoder.open(0)
    return codes
