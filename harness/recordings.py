"""Speech from a sound file of any kind, as the mesh takes it: 24 kHz, mono, 16 bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr

from services.mesh.samples import to_s16

RATE_HZ = 24_000
FRAME_BYTES = RATE_HZ * 80 // 1000 * 2
SHORTEST_S = 0.2  # less gets no answer: it only fills the model's delay line


class UnreadableRecording(ValueError):
    """A file that holds no speech that could be used; the message names it and says why."""


def read_recording(path: Path) -> bytes:
    """The samples of a file of any rate, encoding and number of channels, mixed to one. Raises UnreadableRecording."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError, ValueError) as error:  # soundfile's own errors are RuntimeErrors
        raise UnreadableRecording(f"{path} can't be read as a sound file: {_why(error, path)}") from None
    if not np.isfinite(samples).all():
        raise UnreadableRecording(f"{path} has samples that are not numbers")
    if len(samples) < SHORTEST_S * rate:
        raise UnreadableRecording(f"{path} has {len(samples) / rate:.2f} s of sound; it takes at least {SHORTEST_S} s")
    mono = soxr.resample(samples.mean(axis=1), rate, RATE_HZ)
    return to_s16(mono)


def _why(error: Exception, path: Path) -> str:
    """The reason alone, without the file's name, which soundfile repeats."""
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a folder"
    return str(error).rpartition(": ")[2] or type(error).__name__
