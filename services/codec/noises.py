"""Noise to learn from: of random colours, steady, swelling, humming, knocking; no certain one is learnt by heart.

Each kind is a function of a generator and a number of samples at 24 kHz; float64 [samples] of RMS 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

RATE_HZ = 24_000

Samples = npt.NDArray[np.floating[Any]]
Noise = Callable[[np.random.Generator, int], Samples]


def _level(samples: Samples) -> Samples:
    level: Samples = samples / (np.sqrt(np.mean(samples**2)) + 1e-9)
    return level


def _shaped(rng: np.random.Generator, samples: int, gain: Callable[[Samples], Samples]) -> Samples:
    """White noise with a gain by frequency in hertz."""
    hertz: Samples = np.fft.rfftfreq(samples, 1 / RATE_HZ)
    shaped: Samples = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * gain(hertz), samples)
    return _level(shaped)


def band(rng: np.random.Generator, samples: int) -> Samples:
    """Of one band, tilted."""
    low, tilt = rng.uniform(50, 3000), rng.uniform(-1, 2)
    high = low * rng.uniform(1.3, 8)
    return _shaped(rng, samples, lambda hz: np.where(
        (hz < low) | (hz > high), 0.0, np.maximum(hz, 20.0) ** (-tilt / 2)))


def coloured(rng: np.random.Generator, samples: int) -> Samples:
    """A smooth random spectrum."""
    points = np.log(np.geomspace(30, 12_000, int(rng.integers(3, 14))))
    decibels = rng.uniform(-2.5, 1) * np.log2(np.exp(points) / 300) * 3 + rng.standard_normal(
        len(points)) * rng.uniform(0, 10)
    return _shaped(rng, samples, lambda hz: np.where(
        hz < 20, 0.0, 10 ** (np.interp(np.log(np.maximum(hz, 30.0)), points, decibels) / 20)))


def _swell(rng: np.random.Generator, samples: int, depth_db: float, hertz: float) -> Samples:
    """A gain that wanders."""
    points = max(int(samples / RATE_HZ * hertz) + 2, 3)
    decibels = rng.standard_normal(points) * depth_db / 2
    gain: Samples = 10 ** (np.interp(np.linspace(0, points - 1, samples), np.arange(points), decibels) / 20)
    return gain


def swelling(rng: np.random.Generator, samples: int) -> Samples:
    """A smooth random spectrum that swells and fades."""
    return _level(coloured(rng, samples) * _swell(rng, samples, rng.uniform(3, 14), rng.uniform(0.3, 8)))


def gusts(rng: np.random.Generator, samples: int) -> Samples:
    """Low noise in gusts."""
    tilt, high = rng.uniform(0.5, 3), rng.uniform(1000, 8000)
    low = _shaped(rng, samples, lambda hz: np.where((hz < 20) | (hz > high), 0.0, np.maximum(hz, 20.0) ** (-tilt / 2)))
    return _level(low * _swell(rng, samples, rng.uniform(5, 16), rng.uniform(0.3, 5)))


def hum(rng: np.random.Generator, samples: int) -> Samples:
    """Mains and motors: harmonics, steady or wavering, over a murmur."""
    seconds = np.arange(samples) / RATE_HZ
    hertz, wavering = np.exp(rng.uniform(np.log(45), np.log(600))), rng.uniform(0, 4) * (rng.random() < 0.5)
    phase = 2 * np.pi * hertz * seconds + wavering * np.sin(2 * np.pi * rng.uniform(0.2, 3) * seconds)
    out, fall = np.zeros(samples), rng.uniform(0.3, 1.2)
    for harmonic in range(1, int(rng.integers(4, 24))):
        if harmonic * hertz < RATE_HZ / 2:
            out += np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi)) * rng.uniform(0.1, 1) / harmonic ** fall
    return _level(_level(out) + 10 ** rng.uniform(-1.5, 0.2) * coloured(rng, samples))


def tones(rng: np.random.Generator, samples: int) -> Samples:
    """Beeps."""
    seconds, out, at = np.arange(samples) / RATE_HZ, np.zeros(samples), 0
    while at < samples:
        length, hertz = int(rng.uniform(0.1, 2) * RATE_HZ), rng.uniform(200, 3500)
        if rng.random() < 0.6:
            out[at:at + length] = np.sin(2 * np.pi * hertz * seconds[at:at + length])
        at += length
    return _level(out)


def knocks(rng: np.random.Generator, samples: int) -> Samples:
    """Short bursts of random colours, 4 to 230 ms, some of them in a row."""
    longest = 5500
    colours = [coloured(rng, longest) for _ in range(4)]
    out, rate, shape = np.zeros(samples + longest), rng.uniform(0.7, 12), rng.uniform(0.7, 4)
    at = 0.0
    while at < samples:
        length = int(np.exp(rng.uniform(np.log(100), np.log(longest))))
        rise_and_fall = np.hanning(length) if rng.random() < 0.3 else np.exp(
            -np.arange(length) / length * rng.uniform(1, 8))
        out[int(at):int(at) + length] += colours[int(rng.integers(4))][:length] * rise_and_fall * 10 ** (
            rng.uniform(-15, 0) / 20)
        at += rng.gamma(shape, 1 / rate) * RATE_HZ / 2
    return _level(out[:samples])


def strikes(rng: np.random.Generator, samples: int) -> Samples:
    """Things that are struck and ring, 10 to 300 ms."""
    out, at, rate = np.zeros(samples + RATE_HZ), 0.0, rng.uniform(0.5, 8)
    lowest, highest = sorted(np.exp(rng.uniform(np.log(100), np.log(9000), 2)))
    while at < samples:
        seconds = np.arange(int(rng.uniform(0.01, 0.3) * RATE_HZ)) / RATE_HZ
        sound = np.zeros(len(seconds))
        for _ in range(int(rng.integers(1, 8))):
            sound += rng.uniform(0.2, 1) * np.sin(2 * np.pi * rng.uniform(lowest, highest) * seconds) * np.exp(
                -seconds * rng.uniform(8, 150))
        out[int(at):int(at) + len(sound)] += sound * rng.uniform(0.2, 1)
        at += rng.exponential(1 / rate) * RATE_HZ
    return _level(_level(out[:samples]) + coloured(rng, samples) * 10 ** rng.uniform(-2.5, 0))


def mixed(rng: np.random.Generator, samples: int) -> Samples:
    """Two at once."""
    other = (hum, tones, knocks, strikes)[int(rng.integers(4))]
    return _level(coloured(rng, samples) + other(rng, samples) * 10 ** rng.uniform(-1, 0.5))


# Those that are most like speech to a codec come more often.
KINDS: tuple[Noise, ...] = (
    coloured, coloured, swelling, swelling, gusts, knocks, knocks, knocks, strikes, strikes, mixed, mixed, hum, hum,
    tones, band)


def any_noise(rng: np.random.Generator, samples: int) -> Samples:
    """Of some kind."""
    return KINDS[int(rng.integers(len(KINDS)))](rng, samples)
