"""Audio as callers send it: bytes of samples, mono, in pieces that are neither too short nor too long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from services.gateway.edges.g711 import A_LAW, MU_LAW
from services.gateway.path.audio import LONGEST_PIECE_MS, Pcm
from services.mesh.errors import InvalidRequest
from services.mesh.samples import from_s16, to_s16

# A piece costs a message, whatever is in it: shorter ones are only taken at the end.
SHORTEST_PIECE_MS = 10


@dataclass(frozen=True)
class Format:
    """How samples are laid out."""

    sample_bytes: int
    decode: Callable[[bytes], Pcm]
    """Whole samples to floats [samples]."""
    encode: Callable[[Pcm], bytes]
    """Floats [samples] to bytes; what is too loud for the format is clipped."""


def _from_f32(data: bytes) -> Pcm:
    return np.frombuffer(data, dtype="<f4")


def _to_f32(pcm: Pcm) -> bytes:
    return pcm.astype("<f4", copy=False).tobytes()


S16LE, F32LE = Format(2, from_s16, to_s16), Format(4, _from_f32, _to_f32)
G711_MU_LAW, G711_A_LAW = (Format(1, law.decode, law.encode) for law in (MU_LAW, A_LAW))


class Pieces:
    """One caller's pieces of audio, in the order in which they come."""

    def __init__(self, format: Format, sample_rate_hertz: int) -> None:
        self._format = format
        self._shortest = sample_rate_hertz * SHORTEST_PIECE_MS // 1000
        self._longest = sample_rate_hertz * LONGEST_PIECE_MS // 1000
        self._last_was_short = False

    def decode(self, data: bytes) -> Pcm:
        """The next piece as floats [samples]. Raises InvalidRequest."""
        width = self._format.sample_bytes
        samples = len(data) // width
        if len(data) % width:
            raise InvalidRequest("BAD_PCM", f"a piece must have whole samples of {width} bytes, got {len(data)} bytes",
                                 field="audio.pcm", accepted=f"a multiple of {width} bytes")
        if not 0 < samples <= self._longest:
            raise InvalidRequest("BAD_PCM", f"a piece must have 1 to {self._longest} samples ({LONGEST_PIECE_MS} ms), "
                                 f"got {samples}", field="audio.pcm", accepted=f"1..{self._longest} samples")
        if self._last_was_short:
            raise InvalidRequest("BAD_PCM", f"only the last piece may be shorter than {SHORTEST_PIECE_MS} ms; collect "
                                 "samples before you send them", field="audio.pcm")
        self._last_was_short = samples < self._shortest
        return self._format.decode(data)
