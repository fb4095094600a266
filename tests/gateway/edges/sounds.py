"""Sounds to send through a codec, and how alike two are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pcm = npt.NDArray[np.float32]


def speech(rate_hertz: int, seconds: float) -> Pcm:
    """A voice of some harmonics that rises, falls and pauses, float32 [samples]."""
    time_s = np.arange(round(rate_hertz * seconds)) / rate_hertz
    phase = 2 * np.pi * np.cumsum(150 + 30 * np.sin(2 * np.pi * 2 * time_s)) / rate_hertz
    voice = sum(np.sin(number * phase) / number for number in range(1, 8))
    return np.asarray(0.15 * voice * np.sin(np.pi * 3 * time_s) ** 2, dtype=np.float32)


def likeness(said: Pcm, heard: Pcm) -> float:
    """Correlation of two sounds, 1 for the same."""
    return float(said @ heard / np.sqrt((said @ said) * (heard @ heard)))
