"""How high a voice is: by which two recorded speakers are told apart, without asking the model or its codec."""

from __future__ import annotations

import numpy as np

from talker.config import SAMPLE_RATE_HZ

WINDOW, HOP = 1920, 480  # 80 and 20 ms
LOWEST_HZ, HIGHEST_HZ = 70, 300
LOUD_RMS, PERIODIC = 0.03, 0.6  # of a window that counts: its level, and its autocorrelation one period apart


def pitch_hz(pcm: np.ndarray) -> float | None:
    """The median fundamental frequency of 24 kHz speech, by autocorrelation; None where nothing is voiced."""
    lags = np.arange(SAMPLE_RATE_HZ // HIGHEST_HZ, SAMPLE_RATE_HZ // LOWEST_HZ)
    found = []
    for begin in range(0, len(pcm) - WINDOW, HOP):
        window = pcm[begin : begin + WINDOW]
        window = window - window.mean()
        if np.sqrt(np.mean(window**2)) < LOUD_RMS:
            continue
        spectrum = np.fft.rfft(window, 2 * WINDOW)
        apart = np.fft.irfft(np.abs(spectrum) ** 2)
        alike = apart[lags] / apart[0] / (1 - lags / WINDOW)  # the longer the lag, the fewer samples overlap
        if alike.max() > PERIODIC:
            found.append(SAMPLE_RATE_HZ / lags[alike.argmax()])
    return float(np.median(found)) if found else None
