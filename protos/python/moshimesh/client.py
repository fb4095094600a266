"""A thin typed client over the generated stubs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import grpc
from moshimesh.audio.v1 import audio_pb2
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc
from moshimesh.lm.v1 import lm_pb2

Encoding = Literal["s16", "f32"]
_ENCODINGS = {"s16": (audio_pb2.AUDIO_ENCODING_PCM_S16LE, 2), "f32": (audio_pb2.AUDIO_ENCODING_PCM_F32LE, 4)}
_PACINGS = {"live": conversation_pb2.PACING_LIVE, "offline": conversation_pb2.PACING_OFFLINE}
_PIECE_MS = 80
# A mesh that vanished without a goodbye is noticed within 15 s.
_KEEPALIVE = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000),
              ("grpc.http2.ping_timeout_ms", 5_000)]


class MeshError(Exception):
    """A call that the mesh ended: gRPC code, reason from docs/protocol.md, and when to try again if that helps."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str, retry_after_s: float | None) -> None:
        super().__init__(f"{code.name} {reason}: {message}" if reason else f"{code.name}: {message}")
        self.code, self.reason, self.message, self.retry_after_s = code, reason, message, retry_after_s


@dataclass(frozen=True)
class MeshInfo:
    """What the mesh serves."""

    model_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    slots_total: int
    slots_free: int


@dataclass(frozen=True)
class HopTiming:
    """How long one hop kept one frame, in milliseconds, and how many frames shared its step."""

    hop: str
    queue_ms: float
    compute_ms: float
    batch_size: int
    received_unix_nanos: int
    finished_unix_nanos: int


@dataclass(frozen=True)
class Ready:
    """The conversation is open."""

    session_id: str
    model_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    delay_frames: int
    seed: int


@dataclass(frozen=True)
class Speech:
    """One frame of Moshi's speech: audio in the encoding of the call, text to be appended, and its timings."""

    sequence: int
    pcm: bytes
    text: str
    text_token: int
    codes: Sequence[int]
    frames_skipped: int
    capture_unix_nanos: int
    hops: Sequence[HopTiming]


@dataclass(frozen=True)
class Summary:
    """The conversation ended well."""

    frames_in: int
    frames_out: int
    frames_skipped: int


class Mesh:
    """A connection to a gateway; make one with `connect` and share it between calls."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = conversation_pb2_grpc.ConversationServiceStub(channel)

    async def info(self) -> MeshInfo:
        """What the mesh serves, and whether there is room. Raises MeshError."""
        with _mesh_errors():
            info = await self._stub.GetInfo(conversation_pb2.GetInfoRequest())
        return MeshInfo(info.model_id, info.sample_rate_hertz, info.samples_per_frame, info.slots_total,
                        info.slots_free)

    async def converse(
        self,
        pcm: bytes | bytearray | memoryview | AsyncIterator[bytes],
        *,
        encoding: Encoding = "s16",
        pacing: Literal["live", "offline"] = "live",
        sample_rate_hertz: int = 24_000,
        text_temperature: float | None = None,
        text_top_k: int | None = None,
        audio_temperature: float | None = None,
        audio_top_k: int | None = None,
        seed: int | None = None,
        traceparent: str = "",
    ) -> AsyncIterator[Ready | Speech | Summary]:
        """Hold a conversation.

        Args:
            pcm: mono audio, whole or in pieces of 10 ms to 1 s; the conversation ends when it ends.
            encoding: layout of the samples in both directions: 16 bit integers or 32 bit floats, little endian.
            pacing: "live" for a person (the mesh skips audio when it falls behind), "offline" for a file.
            sample_rate_hertz: must equal the mesh's, see `info`.
            text_temperature, text_top_k, audio_temperature, audio_top_k, seed: how the model draws its tokens;
                temperature 0 is greedy; None takes the model's default.
            traceparent: W3C trace context under which the session's span is put.

        Yields:
            Ready first, then one Speech for each frame, then a Summary.

        Raises:
            MeshError: the mesh refused or ended the call.
            Exception: whatever `pcm` raises.
        """
        sampling = lm_pb2.Sampling(text_temperature=text_temperature, text_top_k=text_top_k,
                                   audio_temperature=audio_temperature, audio_top_k=audio_top_k, seed=seed)
        layout, width = _ENCODINGS[encoding]
        config = conversation_pb2.ConverseConfig(
            sample_rate_hertz=sample_rate_hertz, encoding=layout, pacing=_PACINGS[pacing], sampling=sampling,
            traceparent=traceparent)

        if isinstance(pcm, (bytes, bytearray, memoryview)):
            pieces = _cut(bytes(pcm), sample_rate_hertz * width * _PIECE_MS // 1000)
        else:
            pieces = pcm
        failure: list[Exception] = []  # what `pcm` raised: gRPC would only say that the call was cancelled

        async def requests() -> AsyncIterator[conversation_pb2.ConverseRequest]:
            yield conversation_pb2.ConverseRequest(config=config)
            try:
                async for piece in pieces:
                    if call.done():  # a write now would hide the status: https://github.com/grpc/grpc/issues/36066
                        return
                    yield conversation_pb2.ConverseRequest(audio=conversation_pb2.AudioChunk(pcm=piece))
            except Exception as error:
                failure.append(error)
                raise

        call = self._stub.Converse(requests())
        try:
            with _mesh_errors():
                async for response in call:
                    yield _event(response)
        except (asyncio.CancelledError, MeshError):
            if failure:
                raise failure[0] from None
            raise
        finally:
            call.cancel()


@contextlib.asynccontextmanager
async def connect(target: str, *, credentials: grpc.ChannelCredentials | None = None) -> AsyncIterator[Mesh]:
    """Connect to a gateway at host:port, in plain text unless credentials are given."""
    channel = (grpc.aio.secure_channel(target, credentials, options=_KEEPALIVE) if credentials
               else grpc.aio.insecure_channel(target, options=_KEEPALIVE))
    async with channel:
        yield Mesh(channel)


async def _cut(pcm: bytes, piece_bytes: int) -> AsyncIterator[bytes]:
    for begin in range(0, len(pcm), piece_bytes):
        yield pcm[begin:begin + piece_bytes]


def _event(response: conversation_pb2.ConverseResponse) -> Ready | Speech | Summary:
    kind = response.WhichOneof("response")
    if kind == "speech":
        speech = response.speech
        hops = [HopTiming(audio_pb2.Hop.Name(hop.hop).removeprefix("HOP_").lower().replace("_", ".", 1),
                          (hop.started_unix_nanos - hop.received_unix_nanos) / 1e6,
                          (hop.finished_unix_nanos - hop.started_unix_nanos) / 1e6, hop.batch_size,
                          hop.received_unix_nanos, hop.finished_unix_nanos) for hop in speech.context.hops]
        return Speech(speech.context.sequence, speech.pcm, speech.text, speech.text_token, speech.codes,
                      speech.frames_skipped, speech.context.capture_unix_nanos, hops)
    if kind == "ready":
        ready = response.ready
        return Ready(ready.session_id, ready.model_id, ready.sample_rate_hertz, ready.samples_per_frame,
                     ready.delay_frames, ready.sampling.seed)
    summary = response.summary
    return Summary(summary.frames_in, summary.frames_out, summary.frames_skipped)


@contextlib.contextmanager
def _mesh_errors() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        trailers = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
        retry_after_ms = trailers.get("moshimesh-retry-after-ms")
        raise MeshError(error.code(), trailers.get("moshimesh-reason", ""), error.details() or "",
                        float(retry_after_ms) / 1000 if retry_after_ms else None) from None
