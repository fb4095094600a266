"""How clean the gateway's resampler is: what a tone of 1 kHz has beside it, when it comes in pieces of 10 ms.

`python -m harness.resample_floor` says it for each rate and direction.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from services.gateway.edges.resampling import RATES_HERTZ, Resampler
from services.gateway.path.audio import Pcm

MODEL_HERTZ = 24_000
TONE_HERTZ = 1000
SECONDS = 2
PIECE_MS = 10
FRAME_S = 0.08
# The window's own line is this wide; its sides lie at -200 dB, https://ccrma.stanford.edu/~jos/sasp/Kaiser_Window.html.
LINE_HERTZ = 50
KAISER_BETA = 28.0


def tone(rate_hertz: int) -> Pcm:
    """The tone at half of full scale: float32 [SECONDS * rate_hertz]."""
    times = np.arange(SECONDS * rate_hertz) / rate_hertz
    return (0.5 * np.sin(2 * np.pi * TONE_HERTZ * times)).astype(np.float32)


def in_pieces(pcm: Pcm, samples: int, resampler: Resampler) -> Pcm:
    """The audio after the resampler, which gets it in pieces of so many samples."""
    made = [resampler.resample(pcm[at:at + samples]) for at in range(0, len(pcm), samples)]
    return np.concatenate((*made, resampler.flush()))


def floor_db(pcm: Pcm, rate_hertz: int) -> float:
    """The highest spectral line beside the tone, in dB of the tone, but for the first and last 100 ms."""
    steady = pcm[rate_hertz // 10:-rate_hertz // 10].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(steady * np.kaiser(len(steady), KAISER_BETA)))
    frequencies = np.fft.rfftfreq(len(steady), 1 / rate_hertz)
    beside = spectrum[np.abs(frequencies - TONE_HERTZ) > LINE_HERTZ].max()
    return float(20 * np.log10(beside / spectrum.max()))


def resample_floor_db() -> float:
    """The worst over all rates and both directions."""
    return max(floor_db(in_pieces(tone(source), source * PIECE_MS // 1000, Resampler(source, target)), target)
               for source, target in directions())


def directions() -> list[tuple[int, int]]:
    """From each rate to the model's, and back."""
    others = [rate for rate in RATES_HERTZ if rate != MODEL_HERTZ]
    return [(rate, MODEL_HERTZ) for rate in others] + [(MODEL_HERTZ, rate) for rate in others]


def main() -> None:
    """Say what resampling takes away, and what it costs."""
    for source, target in directions():
        resampler, pcm = Resampler(source, target), tone(source)
        began = time.process_time()
        made = in_pieces(pcm, round(source * (FRAME_S if source == MODEL_HERTZ else PIECE_MS / 1000)), resampler)
        cost_us = (time.process_time() - began) / (SECONDS / FRAME_S) * 1e6
        sys.stdout.write(f"{source:6} -> {target:6} Hz: {floor_db(made, target):6.1f} dB, "
                         f"{resampler.delay_s * 1000:.1f} ms late, {cost_us:4.0f} us of CPU per frame\n")


if __name__ == "__main__":
    main()
