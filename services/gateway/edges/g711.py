"""G.711, the telephone's eight bits a sample: https://www.itu.int/rec/T-REC-G.711. Both laws are tables here.

A byte is a sign, a segment of three bits and a step of four within it; each segment's steps are twice as wide as the
last one's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.gateway.path.audio import Pcm
from services.mesh.samples import FULL_SCALE

RATE_HERTZ = 8000

_BYTES = np.arange(256)
_SAMPLES = np.arange(-32768, 32768)
_Integers = npt.NDArray[np.int64]


def _from_mu_law() -> _Integers:
    """The 16 bit value of each byte."""
    bits = ~_BYTES
    size = ((bits & 15) << 3) + 132 << (bits >> 4 & 7)
    return np.where(bits & 128, 132 - size, size - 132)


def _from_a_law() -> _Integers:
    """The 16 bit value of each byte."""
    bits = _BYTES ^ 0x55
    step, segment = (bits & 15) << 4, bits >> 4 & 7
    size = np.where(segment == 0, step + 8, step + 264 << np.maximum(segment - 1, 0))
    return np.where(bits & 128, size, -size)


def _to_mu_law() -> _Integers:
    """The byte of each 16 bit value, from the lowest on."""
    samples = _SAMPLES >> 2
    size = np.minimum(abs(samples), 8158) + 33
    segment = _highest_bit(size) - 5
    bits: _Integers = (segment << 4 | size >> segment + 1 & 15) ^ np.where(samples < 0, 0x7F, 0xFF)
    return bits


def _to_a_law() -> _Integers:
    """The byte of each 16 bit value, from the lowest on."""
    samples = _SAMPLES >> 3
    size = np.where(samples < 0, ~samples, samples)
    segment = np.maximum(_highest_bit(size) - 4, 0)
    bits: _Integers = (segment << 4 | size >> np.maximum(segment, 1) & 15) ^ np.where(samples < 0, 0x55, 0xD5)
    return bits


def _highest_bit(size: _Integers) -> _Integers:
    return np.frexp(size)[1].astype(np.int64) - 1


class Law:
    """One of the two laws."""

    def __init__(self, decoded: _Integers, encoded: _Integers) -> None:
        self._decoded = (decoded / FULL_SCALE).astype(np.float32)
        self._encoded = encoded.astype(np.uint8)

    def decode(self, data: bytes) -> Pcm:
        """Bytes as floats [samples]."""
        return self._decoded[np.frombuffer(data, np.uint8)]

    def encode(self, pcm: Pcm) -> bytes:
        """Floats [samples] as bytes; what is too loud is clipped."""
        scaled: Pcm = np.clip(np.rint(pcm * FULL_SCALE), -32768, 32767)
        data: bytes = self._encoded[scaled.astype(np.int64) + 32768].tobytes()
        return data


MU_LAW, A_LAW = Law(_from_mu_law(), _to_mu_law()), Law(_from_a_law(), _to_a_law())
