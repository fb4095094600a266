"""A thin typed client over the generated stubs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Literal

import grpc
from moshimesh.aligned import Aligned
from moshimesh.audio.v1 import audio_pb2
from moshimesh.conversation import Conversation, Sent
from moshimesh.events import Event, MeshInfo, mesh_error
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc
from moshimesh.lm.v1 import lm_pb2

Encoding = Literal["s16", "f32"]
_ENCODINGS = {"s16": (audio_pb2.AUDIO_ENCODING_PCM_S16LE, 2), "f32": (audio_pb2.AUDIO_ENCODING_PCM_F32LE, 4)}
_PACINGS = {"live": conversation_pb2.PACING_LIVE, "offline": conversation_pb2.PACING_OFFLINE}
_PIECE_MS = 80
# A mesh that vanished without a goodbye is noticed within 15 s.
_CHANNEL = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.http2.ping_timeout_ms", 5_000),
            # A gateway that was restarted is found again within a second.
            ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1_000)]


class Mesh:
    """A connection to the gateways of a mesh; make one with `connect` and share it between calls."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._stubs = [conversation_pb2_grpc.ConversationServiceStub(channel) for channel in channels]

    async def info(self) -> MeshInfo:
        """What the mesh serves, and whether there is room. Raises MeshError."""
        try:
            info = await self._stubs[0].GetInfo(conversation_pb2.GetInfoRequest())
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error) from None
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
        api_key: str = "",
        resume_s: float = 30.0,
        align: bool = False,
    ) -> AsyncIterator[Event]:
        """Hold a conversation. One that is cut off, or whose gateway stops, goes on at the next gateway.

        Args:
            pcm: mono audio, whole or in pieces of 10 ms to 1 s; the conversation ends when it ends.
            encoding: layout of the samples in both directions: 16 bit integers or 32 bit floats, little endian.
            pacing: "live" for a person (the mesh skips audio when it falls behind), "offline" for a file.
            sample_rate_hertz: must equal the mesh's, see `info`.
            text_temperature, text_top_k, audio_temperature, audio_top_k, seed: how the model draws its tokens;
                temperature 0 is greedy; None takes the model's default.
            traceparent: W3C trace context under which the session's span is put.
            api_key: names the caller to a mesh that limits calls per key.
            resume_s: how long to try to take up a call that was cut off, within the mesh's own grace time; 0: never.
            align: for a microphone that hands out pieces of a few ms: begin with less than a frame of silence, so that
                frames are complete when the mesh would like to have them and share steps with those of other callers.
                The first piece is asked for when the conversation is open.

        Yields:
            Ready first (Queued before it, when the mesh is full), then one Speech for each frame, then a Summary.
            Resumed and ResumeStatus tell what happened in between.

        Raises:
            MeshError: the mesh refused or ended the call, or the call was cut off and could not be taken up again.
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
        on_ready = None
        if align:
            aligned = Aligned(pieces, width, sample_rate_hertz * width)
            pieces, on_ready = aligned.frames(), aligned.open
        sent = Sent(pieces, sample_rate_hertz * width)
        events = Conversation(self._stubs, config, sent, width, api_key, resume_s, on_ready).events()
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()


@contextlib.asynccontextmanager
async def connect(target: str, *, credentials: grpc.ChannelCredentials | None = None) -> AsyncIterator[Mesh]:
    """Connect to a gateway at host:port, or to several separated by commas: a call whose gateway is lost goes on at the
    next one. In plain text unless credentials are given.
    """
    async with contextlib.AsyncExitStack() as open_channels:
        channels = [grpc.aio.secure_channel(address, credentials, options=_CHANNEL) if credentials
                    else grpc.aio.insecure_channel(address, options=_CHANNEL) for address in target.split(",")]
        for channel in channels:
            await open_channels.enter_async_context(channel)
        yield Mesh(channels)


async def _cut(pcm: bytes, piece_bytes: int) -> AsyncIterator[bytes]:
    for begin in range(0, len(pcm), piece_bytes):
        yield pcm[begin:begin + piece_bytes]
