"""Bytes to floats and back."""

from __future__ import annotations

import numpy as np
import pytest
from moshimesh.audio.v1 import audio_pb2

from services.gateway.edges import pcm
from services.mesh.errors import InvalidRequest

F32, S16 = audio_pb2.AUDIO_ENCODING_PCM_F32LE, audio_pb2.AUDIO_ENCODING_PCM_S16LE


def test_integers_and_back() -> None:
    values = np.array([-32768, -1, 0, 1, 32767], dtype="<i2")
    floats = pcm.decode(values.tobytes(), S16)
    assert floats.dtype == np.float32 and floats.min() == -1.0 and floats.max() < 1.0
    assert pcm.encode(floats, S16) == values.tobytes()


def test_what_is_too_loud_for_integers_is_clipped() -> None:
    too_loud = np.array([-2.0, 2.0], np.float32)
    assert np.frombuffer(pcm.encode(too_loud, S16), dtype="<i2").tolist() == [-32768, 32767]


def test_floats_stay_as_they_are() -> None:
    data = np.array([0.1, -3.0], dtype="<f4").tobytes()
    assert pcm.encode(pcm.decode(data, F32), F32) == data


@pytest.mark.parametrize(("data", "encoding"), [(bytes(5), F32), (bytes(3), S16)])
def test_a_cut_sample_is_refused(data: bytes, encoding: audio_pb2.AudioEncoding) -> None:
    with pytest.raises(InvalidRequest, match="whole samples"):
        pcm.decode(data, encoding)
