"""Bytes to floats and back, and which pieces are taken."""

from __future__ import annotations

import numpy as np
import pytest

from services.gateway.edges.pcm import F32LE, G711_MU_LAW, S16LE, Format, Pieces
from services.mesh.errors import InvalidRequest


def test_integers_and_back() -> None:
    values = np.array([-32768, -1, 0, 1, 32767], dtype="<i2")
    floats = S16LE.decode(values.tobytes())
    assert floats.dtype == np.float32 and floats.min() == -1.0 and floats.max() < 1.0
    assert S16LE.encode(floats) == values.tobytes()


def test_what_is_too_loud_for_integers_is_clipped() -> None:
    too_loud = np.array([-2.0, 2.0], np.float32)
    assert np.frombuffer(S16LE.encode(too_loud), dtype="<i2").tolist() == [-32768, 32767]


def test_floats_stay_as_they_are() -> None:
    data = np.array([0.1, -3.0], dtype="<f4").tobytes()
    assert F32LE.encode(F32LE.decode(data)) == data


@pytest.mark.parametrize(("data", "format"), [(bytes(5), F32LE), (bytes(3), S16LE)])
def test_a_cut_sample_is_refused(data: bytes, format: Format) -> None:
    with pytest.raises(InvalidRequest, match="whole samples"):
        Pieces(format, 24_000).decode(data)


@pytest.mark.parametrize(("samples", "accepted"), [(0, False), (1, True), (8000, True), (8001, False)])
def test_a_piece_has_a_second_at_most(samples: int, accepted: bool) -> None:
    pieces = Pieces(G711_MU_LAW, 8000)
    if accepted:
        assert len(pieces.decode(bytes(samples))) == samples
    else:
        with pytest.raises(InvalidRequest, match="1 to 8000 samples"):
            pieces.decode(bytes(samples))


def test_only_the_last_piece_may_be_shorter_than_10_ms() -> None:
    for sizes, refused in (((220, 220, 1), False), ((1,), False), ((220, 219, 220), True), ((1, 1), True)):
        pieces = Pieces(S16LE, 22_050)
        for size in sizes[:-1]:
            pieces.decode(bytes(2 * size))
        if refused:
            with pytest.raises(InvalidRequest, match="10 ms"):
                pieces.decode(bytes(2 * sizes[-1]))
        else:
            pieces.decode(bytes(2 * sizes[-1]))
