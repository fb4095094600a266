"""How the audio of one call of `/api/pcm` travels: the formats that it may have, and their rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from services.gateway.calls.events import Ready
from services.gateway.edges import pcm
from services.gateway.edges.g711 import RATE_HERTZ as TELEPHONE_HERTZ
from services.gateway.edges.opus import OpusDecoder, OpusEncoder
from services.gateway.edges.pcm import Pieces
from services.gateway.path.audio import Pcm
from services.mesh.errors import InvalidRequest

DEFAULT_HERTZ = 24_000
OPUS_HERTZ = 48_000  # of its time stamps, whatever it was recorded at; what browsers' decoders give
# Opus is coded at the mesh's rate and needs no resampler; a decoder gives any rate that it is asked for.
OPUS_CODED_HERTZ = 24_000
OPUS_PACKET_SAMPLES = OPUS_CODED_HERTZ * 20 // 1000

_SAMPLES = {"s16le": pcm.S16LE, "f32le": pcm.F32LE}
_TELEPHONE = {"mulaw": pcm.G711_MU_LAW, "alaw": pcm.G711_A_LAW}
_OPUS = "opus"
_FORMATS = (*_SAMPLES, *_TELEPHONE, _OPUS)


@dataclass(frozen=True)
class Sound:
    """How one call's audio travels."""

    format: str
    rate_hertz: int
    """Of what is decoded, and of what is to be encoded."""
    decode: Callable[[bytes], Pcm]
    """A message to float32 [samples]. Raises InvalidRequest."""
    encode: Callable[[Pcm], Iterable[bytes]]
    """A frame to messages."""

    def announced(self, ready: Ready) -> Ready:
        """With the rate that the caller knows."""
        if self.format != _OPUS:
            return ready
        times = OPUS_HERTZ // ready.sample_rate_hertz
        return replace(ready, sample_rate_hertz=OPUS_HERTZ, samples_per_frame=times * ready.samples_per_frame)


def sound_of(format: str, rate_hertz: int | None) -> Sound:
    """The way of audio in this format; without a rate in the format's own. Raises InvalidRequest.

    Whether the mesh takes this rate of samples is for `hold_at` to say.
    """
    if format not in _FORMATS:
        accepted = ", ".join(_FORMATS)
        raise InvalidRequest("BAD_ENCODING", f"format must be one of {accepted}", field="format", accepted=accepted)
    if format in _SAMPLES:
        return _of_samples(format, _SAMPLES[format], DEFAULT_HERTZ if rate_hertz is None else rate_hertz)
    only_hertz = OPUS_HERTZ if format == _OPUS else TELEPHONE_HERTZ
    if rate_hertz not in (None, only_hertz):
        raise InvalidRequest("BAD_SAMPLE_RATE", f"{format} has {only_hertz} Hz, got {rate_hertz}", field="rate",
                             accepted=only_hertz)
    return _of_opus() if format == _OPUS else _of_samples(format, _TELEPHONE[format], TELEPHONE_HERTZ)


def _of_samples(name: str, format: pcm.Format, rate_hertz: int) -> Sound:
    return Sound(name, rate_hertz, Pieces(format, rate_hertz).decode, lambda frame: (format.encode(frame),))


def _of_opus() -> Sound:
    encoder = OpusEncoder(OPUS_CODED_HERTZ)
    rest: list[Pcm] = []  # at most one: what a frame had beyond its packets

    def encode(frame: Pcm) -> Iterator[bytes]:
        frame = np.concatenate((*rest, frame))
        rest.clear()
        whole = len(frame) - len(frame) % OPUS_PACKET_SAMPLES
        if whole < len(frame):
            rest.append(frame[whole:])
        for at in range(0, whole, OPUS_PACKET_SAMPLES):
            yield encoder.encode(frame[at:at + OPUS_PACKET_SAMPLES])

    return Sound(_OPUS, OPUS_CODED_HERTZ, OpusDecoder(OPUS_CODED_HERTZ).decode, encode)
