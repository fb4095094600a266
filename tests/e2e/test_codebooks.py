"""Models that speak and hear different numbers of codebooks: the reference loop's tokens, also after a move."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import moshimesh
import numpy as np
import numpy.typing as npt
import pytest
from moshimesh.codec.v1 import codec_pb2, codec_pb2_grpc

from harness.local_mesh import LocalMesh
from scripts.random_checkpoint import write_checkpoint
from tests.e2e.calls import GREEDY, call, pieces
from tests.e2e.reference import reference_loop

pytestmark = pytest.mark.slow  # a mesh for each shape
Pcm = npt.NDArray[np.float32]


@pytest.mark.parametrize(("own", "user"), [(4, 8), (8, 4), (5, 3)], ids=str)
async def test_as_many_codebooks_as_the_model_has(tmp_path: Path, speech: Pcm, own: int, user: int) -> None:
    write_checkpoint(tmp_path, own_codebooks=own, user_codebooks=user)
    reference = reference_loop(str(tmp_path), speech[:100_000])
    assert reference.tokens.shape[1] == 1 + own
    async with LocalMesh(str(tmp_path), slots=2) as mesh:
        answer = await call(mesh.target, speech[:100_000], **GREEDY)
        assert (answer.tokens == reference.tokens).all()
        assert np.abs(answer.pcm - reference.pcm).max() < 1e-4


async def test_after_the_codec_was_lost(tmp_path: Path, speech: Pcm) -> None:
    """Encoder and decoder move to another replica, in the middle of a call."""
    write_checkpoint(tmp_path, own_codebooks=5, user_codebooks=3)
    reference = reference_loop(str(tmp_path), speech[:200_000])
    async with LocalMesh(str(tmp_path), slots=2, replicas=2) as mesh, moshimesh.connect(mesh.target) as client:
        frames: list[moshimesh.Speech] = []
        async for event in client.converse(pieces(speech[:200_000]), pacing="offline", encoding="f32", **GREEDY):
            if isinstance(event, moshimesh.Speech):
                frames.append(event)
                if len(frames) == 40:
                    busy = "codec" if await _used(mesh.codec_port) else "codec-2"
                    mesh.processes[busy].send(signal.SIGKILL)
    assert ([[frame.text_token, *frame.codes] for frame in frames] == reference.tokens).all()
    pcm = np.frombuffer(b"".join(frame.pcm for frame in frames), "<f4")
    assert np.abs(pcm - reference.pcm).max() < 1e-4


async def _used(port: int) -> bool:
    async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
        info = await codec_pb2_grpc.CodecServiceStub(channel).GetInfo(codec_pb2.GetInfoRequest())
        return info.encode_slots_free < info.encode_slots_total
