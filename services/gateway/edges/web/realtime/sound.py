"""Sound between the client's format and the mesh's: 16 bit PCM or G.711, at any rate that is served."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from services.gateway.edges import pcm
from services.gateway.edges.resampling import Resampler
from services.gateway.edges.web.realtime.faults import ClientFault
from services.gateway.edges.web.realtime.feed import Ear
from services.gateway.edges.web.realtime.settings import A_LAW, MU_LAW, PCM, Format
from services.gateway.path.audio import Pcm

_SAMPLES = {PCM: pcm.S16LE, MU_LAW: pcm.G711_MU_LAW, A_LAW: pcm.G711_A_LAW}


def decoded(text: str) -> bytes:
    """A client's sound, from base64. Raises ClientFault."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ClientFault("invalid_base64", "audio must be base64", "audio") from None


def ear_of(rate: int) -> Callable[[Format], Ear]:
    """What reads a client's sound in a format, for a mesh of this rate."""
    return lambda format: _Ear(format, rate)


class _Ear:
    def __init__(self, format: Format, rate: int) -> None:
        self._samples = _SAMPLES[format.type]
        self._resampler = _resampler(format.rate, rate)

    def decode(self, data: bytes) -> Pcm:
        """See Ear."""
        sound = self._samples.decode(data)
        return sound if self._resampler is None else self._resampler.resample(sound)


class Mouth:
    """Writes the model's sound in the client's format; see Voice."""

    def __init__(self, rate: int, format: Callable[[], Format]) -> None:
        """`rate` is the mesh's, `format` says what is in force."""
        self._rate, self._in_force = rate, format
        self._format: Format | None = None  # of the response that is open
        self._resampler: Resampler | None = None

    def encode(self, sound: Pcm) -> bytes:
        """See Voice."""
        if self._format is None:  # a response keeps the format in which it began
            self._format = self._in_force()
            self._resampler = _resampler(self._rate, self._format.rate)
        return self._write(sound if self._resampler is None else self._resampler.resample(sound), self._format)

    def finish(self) -> bytes:
        """See Voice."""
        format, resampler = self._format, self._resampler
        self._format = self._resampler = None
        return b"" if format is None or resampler is None else self._write(resampler.flush(), format)

    @staticmethod
    def _write(sound: Pcm, format: Format) -> bytes:
        return _SAMPLES[format.type].encode(sound)


def _resampler(from_hertz: int, to_hertz: int) -> Resampler | None:
    return None if from_hertz == to_hertz else Resampler(from_hertz, to_hertz)
