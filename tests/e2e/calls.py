"""Calls as a backend team would make them, and what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import moshimesh
import numpy as np
import numpy.typing as npt
import pytest
from google.rpc import error_details_pb2, status_pb2
from moshimesh.codec.v1 import codec_pb2, codec_pb2_grpc
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc

from harness.local_mesh import LocalMesh

GREEDY = {"text_temperature": 0.0, "audio_temperature": 0.0}
SAMPLED = {"text_temperature": 0.8, "audio_temperature": 0.8, "seed": 7}


@dataclass(frozen=True)
class Call:
    """A finished call: tokens int64 [frames, 1 + codebooks], pcm float32 [samples]."""

    ready: moshimesh.Ready
    speech: list[moshimesh.Speech]
    summary: moshimesh.Summary

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        return np.array([[frame.text_token, *frame.codes] for frame in self.speech])

    @property
    def pcm(self) -> npt.NDArray[np.float32]:
        return np.frombuffer(b"".join(frame.pcm for frame in self.speech), dtype="<f4")


async def pieces(pcm: npt.NDArray[np.float32], piece_ms: int = 80) -> AsyncIterator[bytes]:
    """The audio in pieces, as fast as they are taken."""
    samples = 24_000 * piece_ms // 1000
    for begin in range(0, len(pcm), samples):
        yield pcm[begin:begin + samples].astype("<f4").tobytes()


async def call(target: str, pcm: npt.NDArray[np.float32], piece_ms: int = 80, **options: Any) -> Call:
    """One offline call with float audio."""
    options = {"pacing": "offline", "encoding": "f32"} | options
    ready, summary, speech = None, None, []
    async with moshimesh.connect(target) as mesh:
        async for event in mesh.converse(pieces(pcm, piece_ms), **options):
            if isinstance(event, moshimesh.Speech):
                speech.append(event)
            elif isinstance(event, moshimesh.Ready):
                ready = event
            else:
                summary = event
    assert ready is not None and summary is not None
    return Call(ready, speech, summary)


def error_info(error: Any) -> error_details_pb2.ErrorInfo:
    """The reason in the status of a gRPC error, of grpc or grpc.aio."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert status.code == error.code().value[0]
    return info


async def ending(stream: Any) -> tuple[str, grpc.aio.AioRpcError]:
    """The end of a plain stub's call to Converse: the reason that was said in-band, and the status."""
    reason = ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while (response := await asyncio.wait_for(stream.read(), 30)) is not grpc.aio.EOF:
            if response.HasField("ended"):
                reason = response.ended.reason
                await stream.done_writing()
    return reason, caught.value


async def free_slots(mesh: LocalMesh) -> tuple[int, int, int]:
    """Free slots of encoder, lm and decoder."""
    async with (grpc.aio.insecure_channel(f"localhost:{mesh.codec_port}") as codec_channel,
                grpc.aio.insecure_channel(f"localhost:{mesh.lm_port}") as lm_channel):
        codec = await codec_pb2_grpc.CodecServiceStub(codec_channel).GetInfo(codec_pb2.GetInfoRequest())
        lm = await lm_pb2_grpc.LmServiceStub(lm_channel).GetInfo(lm_pb2.GetInfoRequest())
    return codec.encode_slots_free, lm.slots_free, codec.decode_slots_free


async def slots_are_free(mesh: LocalMesh, within_s: float = 10.0) -> bool:
    """Whether every slot of the mesh is free again within the time."""
    deadline = asyncio.get_running_loop().time() + within_s
    while asyncio.get_running_loop().time() < deadline:
        if await free_slots(mesh) == (mesh.slots, mesh.slots, mesh.slots):
            return True
        await asyncio.sleep(0.05)
    return False


async def stepper(mesh: LocalMesh) -> str:
    """The process of a NullMesh with two replicas whose lm holds the call."""
    for name, lm in (("codec", "lm"), ("codec-2", "lm-2")):
        async with grpc.aio.insecure_channel(f"localhost:{mesh.ports[lm]}") as channel:
            info = await lm_pb2_grpc.LmServiceStub(channel).GetInfo(lm_pb2.GetInfoRequest())
        if info.slots_free < info.slots_total:
            return name
    raise AssertionError("nobody holds the call")
