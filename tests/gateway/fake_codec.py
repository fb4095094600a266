"""A codec that counts: the codes of a frame are made of its samples, and the samples of codes are the codes.

Served through real gRPC on real ports, as the language model beside it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import grpc
import numpy as np
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2

from services.mesh.errors import NoFreeSlot
from services.mesh.incoming import Incoming, Sender, read_config_message, read_payload, read_payloads
from services.mesh.serving import RunningStreams, Service, register
from services.mesh.tunnel import TunnelServer

RATE, FRAME, CODEBOOKS = 100, 8, 2
SILENCE = [60, 61]
FACTS: dict[str, Any] = {
    "codec_id": "codec", "sample_rate_hertz": RATE, "samples_per_frame": FRAME, "codebooks": CODEBOOKS,
    "cardinality": 64, "priming_frames": 0}


def codes_of(pcm: np.ndarray) -> list[int]:
    """The codes of a frame's samples [FRAME]."""
    return [int(abs(pcm).sum()) % 64, int(pcm[0]) % 64]


class FakeCodec:
    """One replica."""

    def __init__(self, slots: int = 8, priming_frames: int = 0) -> None:
        self.slots, self.held = slots, {"encode": 0, "decode": 0}
        self.pasts: list[np.ndarray] = []
        """What each encoder that was opened with a past has heard of it, [frames, FRAME]."""
        self.encoded = 0
        self._facts = {**FACTS, "priming_frames": priming_frames}
        self.speech_table = b""
        service = Service(codec_pb2.DESCRIPTOR.services_by_name["CodecService"],
                          {"GetInfo": self.get_info, "Encode": self.encode, "Decode": self.decode}, stall_s=5.0)
        self._tunnel = TunnelServer(service)
        self._services = (service, self._tunnel.service)

    async def start(self) -> str:
        self._server = grpc.aio.server()
        for service in self._services:
            register(self._server, service, RunningStreams())
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def kill(self) -> None:
        await self._server.stop(0)

    async def get_info(self, request: codec_pb2.GetInfoRequest, sender: Sender) -> codec_pb2.GetInfoResponse:
        return codec_pb2.GetInfoResponse(
            encode_slots_total=self.slots, encode_slots_free=self.slots - self.held["encode"],
            decode_slots_total=self.slots, decode_slots_free=self.slots - self.held["decode"],
            instance_id="one", silence_codes=SILENCE, **self._facts)

    async def encode(self, requests: Incoming[codec_pb2.EncodeRequest]
                     ) -> AsyncGenerator[codec_pb2.EncodeResponse, None]:
        config = await read_config_message(requests)
        past: list[np.ndarray] = []
        while len(past) < config.past_frames:
            part = await read_payload(requests, "past")
            pcm = (np.frombuffer(part.pcm, "<f4") if part.encoding == audio_pb2.AUDIO_ENCODING_PCM_F32LE
                   else np.frombuffer(part.pcm, "<i2") / np.float32(32768))
            past += list(pcm.reshape(-1, FRAME))
        if past:
            self.pasts.append(np.stack(past))
        self._take("encode")
        try:
            yield codec_pb2.EncodeResponse(ready=codec_pb2.EncodeReady(
                silence_codes=SILENCE, speech_table=self.speech_table, **self._facts))
            async for frame in read_payloads(requests, "frame"):
                self.encoded += 1
                yield codec_pb2.EncodeResponse(frame=audio_pb2.CodeFrame(
                    context=frame.context, codes=codes_of(np.frombuffer(frame.pcm, "<f4"))))
            yield codec_pb2.EncodeResponse(summary=codec_pb2.EncodeSummary())
        finally:
            self.held["encode"] -= 1

    async def decode(self, requests: Incoming[codec_pb2.DecodeRequest]
                     ) -> AsyncGenerator[codec_pb2.DecodeResponse, None]:
        await read_config_message(requests)
        self._take("decode")
        try:
            yield codec_pb2.DecodeResponse(ready=codec_pb2.DecodeReady(**self._facts))
            async for frame in read_payloads(requests, "frame"):
                pcm = np.resize(np.array(frame.codes, "<f4"), FRAME)
                yield codec_pb2.DecodeResponse(frame=audio_pb2.PcmFrame(context=frame.context, pcm=pcm.tobytes()))
            yield codec_pb2.DecodeResponse(summary=codec_pb2.DecodeSummary())
        finally:
            self.held["decode"] -= 1

    def _take(self, kind: str) -> None:
        if self.held[kind] == self.slots:
            raise NoFreeSlot("full")
        self.held[kind] += 1
