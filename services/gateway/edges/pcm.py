"""PCM as callers send it: bytes of 32 bit floats or 16 bit integers, mono, little endian."""

from __future__ import annotations

import numpy as np
from moshimesh.audio.v1 import audio_pb2

from services.gateway.path.audio import Pcm
from services.mesh.errors import InvalidRequest
from services.mesh.samples import FULL_SCALE

_SAMPLE_BYTES = {audio_pb2.AUDIO_ENCODING_PCM_F32LE: 4, audio_pb2.AUDIO_ENCODING_PCM_S16LE: 2}


def decode(data: bytes, encoding: audio_pb2.AudioEncoding) -> Pcm:
    """A piece of audio as floats [samples]. Raises InvalidRequest when a sample is cut."""
    width = _SAMPLE_BYTES[encoding]
    if len(data) % width:
        raise InvalidRequest("BAD_PCM", f"a piece must have whole samples of {width} bytes, got {len(data)} bytes",
                             field="audio.pcm", accepted=f"a multiple of {width} bytes")
    if encoding == audio_pb2.AUDIO_ENCODING_PCM_S16LE:
        return np.frombuffer(data, dtype="<i2").astype(np.float32) / FULL_SCALE
    return np.frombuffer(data, dtype="<f4")


def encode(pcm: Pcm, encoding: audio_pb2.AudioEncoding) -> bytes:
    """Floats [samples] as bytes; what 16 bits can't hold is clipped."""
    if encoding == audio_pb2.AUDIO_ENCODING_PCM_F32LE:
        return pcm.astype("<f4", copy=False).tobytes()
    scaled: Pcm = np.clip(np.rint(pcm * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
    return scaled.astype("<i2").tobytes()
