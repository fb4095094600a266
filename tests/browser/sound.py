"""What was heard and played, compared sample by sample."""

from __future__ import annotations

import io
import wave
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Pcm: TypeAlias = npt.NDArray[np.float32]

RATE = 24_000
# A tone of 440 Hz at -10 dBFS has a second difference of 0.004, a click of -26 dBFS one of 0.05. Cross-fades of 2.5 ms
# and changes of the tone's phase within them stay below a third of that.
SMOOTH = 0.015


def read_wav(data: bytes, rate: int = RATE) -> tuple[Pcm, Pcm]:
    """Left and right of a 16 bit WAV, float32 [samples] each."""
    with wave.open(io.BytesIO(data)) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) == (rate, 2, 2)
        samples = np.frombuffer(wav.readframes(wav.getnframes()), "<i2").astype(np.float32) / 32768
    return samples[::2], samples[1::2]


def correlation(reference: Pcm, heard: Pcm) -> float:
    """The best normalised correlation of the reference with any stretch of what was heard, up to 2 s apart."""
    size = 1 << (len(reference) + len(heard)).bit_length()
    products = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(reference, size)), size)
    lags = np.concatenate((np.arange(0, 2 * RATE), np.arange(-2 * RATE, 0)))
    lag = int(lags[np.argmax(products[lags])])
    begin, end = max(lag, 0), min(lag + len(reference), len(heard))
    one, other = reference[begin - lag:end - lag], heard[begin:end]
    return float(np.dot(one, other) / np.sqrt(np.dot(one, one) * np.dot(other, other) + 1e-12))


def discontinuities(samples: Pcm) -> int:
    """Places where the second difference is beyond SMOOTH, 5 ms apart at least."""
    places = np.flatnonzero(np.abs(np.diff(samples, 2)) > SMOOTH)
    return int(np.sum(np.diff(places, prepend=-RATE) > RATE // 200)) if len(places) else 0


def silent_from(samples: Pcm, at: int, for_ms: int = 100, below_dbfs: float = -50.0) -> int | None:
    """The first sample from `at` on after which it is silent for so long; None if there is none."""
    loud = np.flatnonzero(np.abs(samples[at:]) > 10 ** (below_dbfs / 20))
    edges = np.concatenate(([-1], loud, [len(samples) - at]))
    gaps = np.flatnonzero(np.diff(edges) > for_ms * RATE // 1000)
    return int(at + edges[gaps[0]] + 1) if len(gaps) else None


def tonal(samples: Pcm, rate: int, hertz: float, loud: float) -> tuple[int, float]:
    """Windows of 100 ms that have something in them, and the share of those that are this tone at this RMS."""
    window = samples[:len(samples) // (rate // 10) * (rate // 10)].reshape(-1, rate // 10)
    rms = np.sqrt((window ** 2).mean(axis=1))
    peaks = np.abs(np.fft.rfft(window * np.hanning(rate // 10))).argmax(axis=1) * 10  # Hz
    heard = rms > loud / 3
    good = heard & (np.abs(peaks - hertz) <= 10) & (np.abs(rms / loud - 1) < 0.3)
    return int(heard.sum()), float(good.sum() / max(heard.sum(), 1))
