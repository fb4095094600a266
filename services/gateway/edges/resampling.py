"""From one sample rate to another, piece by piece: a caller may speak at a rate that is not the mesh's.

A linear-phase low-pass filter in polyphase form: https://ccrma.stanford.edu/~jos/resample/. It is causal: n samples
in give n * to / from samples out at once, whatever the pieces, and the sound is late by the filter's half length.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from services.gateway.path.audio import Pcm

RATES_HERTZ = (8000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""What callers may speak at, besides the mesh's own rate."""

ATTENUATION_DB = 100.0  # of images and aliases: below the noise of 16 bits
# The band between what passes and what is stopped. Half the width is twice the delay. 600 Hz at least: the telephone's
# band ends at 3400 Hz, and 8 kHz carry nothing beyond 4000.
TRANSITION_OF_NYQUIST, NARROWEST_TRANSITION_HERTZ = 0.1, 600.0
BLOCK = 128  # samples out per row of a product, about: enough for BLAS, and few are computed that aren't asked for


@dataclass(frozen=True)
class _Filter:
    """The filter between two rates, as a matrix that makes a block of samples out from the samples in around it."""

    matrix: Pcm
    """[samples in with their history, samples out]"""
    history: int
    """Samples before a block of samples in that it needs."""
    step: int
    """Samples in per block."""
    block: int
    """Samples out per block."""
    delay_s: float

    @staticmethod
    @functools.cache
    def between(from_hertz: int, to_hertz: int) -> _Filter:
        """The filter for these rates; 100 to 600 kB."""
        common = math.gcd(from_hertz, to_hertz)
        up, down = to_hertz // common, from_hertz // common
        inner_hertz = from_hertz * up  # where both rates' samples lie on one grid
        nyquist = min(from_hertz, to_hertz) / 2
        transition = max(TRANSITION_OF_NYQUIST * nyquist, NARROWEST_TRANSITION_HERTZ)
        # Kaiser's formulas: https://ccrma.stanford.edu/~jos/sasp/Kaiser_Window.html
        half = math.ceil((ATTENUATION_DB - 8) / (2.285 * 2 * math.pi * transition / inner_hertz) / 2)
        times = np.arange(-half, half + 1)
        cutoff = (2 * nyquist - transition) / inner_hertz  # the middle of the transition; 1 is half of inner_hertz
        taps = np.sinc(cutoff * times) * np.kaiser(len(times), 0.1102 * (ATTENUATION_DB - 8.7))
        taps *= up / taps.sum()
        repeats = max(1, BLOCK // up)
        block, step = up * repeats, down * repeats
        history = (len(taps) - 1) // up
        # Sample out k is the sum over samples in n of taps[k * down - n * up].
        lags = np.arange(block) * down - np.arange(-history, step)[:, None] * up
        matrix = np.where((lags >= 0) & (lags < len(taps)), taps[np.clip(lags, 0, len(taps) - 1)], 0.0)
        return _Filter(matrix.astype(np.float32), history, step, block, half / inner_hertz)


class Resampler:
    """One stream of audio on its way from one rate to another."""

    def __init__(self, from_hertz: int, to_hertz: int) -> None:
        self._filter = _Filter.between(from_hertz, to_hertz)
        self.delay_s = self._filter.delay_s
        """How late the sound comes out."""
        self._tail = math.ceil(self.delay_s * from_hertz)
        # From `history` samples before the block that is being made; and how much of that block has gone out.
        self._kept: Pcm = np.zeros(self._filter.history, np.float32)
        self._given = 0

    def resample(self, piece: Pcm) -> Pcm:
        """The next samples: float32 [n] at the one rate to float32 [about n * to / from] at the other."""
        filter = self._filter
        kept = np.concatenate((self._kept, piece))
        fresh = len(kept) - filter.history
        ready = -(-fresh * filter.block // filter.step)
        blocks = -(-ready // filter.block)
        # The last block may lack samples in: what would be made of them does not go out yet.
        padded = np.concatenate((kept, np.zeros(max(blocks * filter.step - fresh, 0), np.float32)))
        windows = np.lib.stride_tricks.as_strided(
            padded, (blocks, filter.history + filter.step), (filter.step * padded.itemsize, padded.itemsize),
            writeable=False)
        made: Pcm = np.dot(windows, filter.matrix).reshape(-1)[self._given:ready]
        whole = fresh // filter.step
        self._kept, self._given = kept[whole * filter.step:], ready - whole * filter.block
        return made

    def flush(self) -> Pcm:
        """What the filter still holds; it is over after that."""
        return self.resample(np.zeros(self._tail, np.float32))
