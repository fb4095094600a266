"""Noise that no table was learnt from: colours, and rooms, streets and machines made of other parts than
services/codec/noises.py has.

Each kind is a function of a generator and a number of samples at 24 kHz; float64 [samples] of RMS 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

RATE_HZ = 24_000

Samples = npt.NDArray[np.float64]


def _level(samples: Samples) -> Samples:
    return samples / (float(np.sqrt(np.mean(samples**2))) + 1e-9)


def _colour(exponent: float, low: float = 20.0, high: float = 12_000.0
            ) -> Callable[[np.random.Generator, int], Samples]:
    """Noise whose power falls with frequency to this exponent."""
    def noise(rng: np.random.Generator, samples: int) -> Samples:
        spectrum, hertz = np.fft.rfft(rng.standard_normal(samples)), np.fft.rfftfreq(samples, 1 / RATE_HZ)
        gain = np.where((hertz < low) | (hertz > high), 0.0, np.maximum(hertz, 20.0) ** (-exponent / 2))
        return _level(np.fft.irfft(spectrum * gain, samples))

    return noise


def _seconds(samples: int) -> Samples:
    return np.arange(samples) / RATE_HZ


def _sum_at(samples: int, places: Samples, make: Callable[[], Samples]) -> Samples:
    """Short sounds at these seconds."""
    out = np.zeros(samples)
    for place in (places * RATE_HZ).astype(int):
        sound = make()
        end = min(place + len(sound), samples)
        out[place:end] += sound[:max(end - place, 0)]
    return out


def fan(rng: np.random.Generator, samples: int) -> Samples:
    """Blades that beat in broad noise, over a motor."""
    at, beat = _seconds(samples), rng.uniform(8, 25)
    air = _colour(1.3, 40, 5000)(rng, samples) * (1 + 0.3 * np.sin(2 * np.pi * beat * at))
    motor = sum(np.sin(2 * np.pi * harmonic * 117.0 * at) / harmonic for harmonic in range(1, 7))
    return _level(air + 0.4 * np.asarray(motor))


def vacuum_cleaner(rng: np.random.Generator, samples: int) -> Samples:
    """A whine that wavers a little, and hiss."""
    at = _seconds(samples)
    phase = 2 * np.pi * 310 * at + 3 * np.sin(2 * np.pi * 0.7 * at + rng.uniform(0, 6))
    whine = sum(np.sin(harmonic * phase) / harmonic**0.7 for harmonic in range(1, 12))
    return _level(0.3 * np.asarray(whine) + _colour(0.2, 200, 9000)(rng, samples))


def car(rng: np.random.Generator, samples: int) -> Samples:
    """Inside a car: rumble, and tyres."""
    road = np.interp(_seconds(samples), np.arange(0, samples / RATE_HZ + 2, 2.0),
                     10 ** (rng.normal(0, 2, int(samples / RATE_HZ / 2) + 2) / 20)[:len(np.arange(
                         0, samples / RATE_HZ + 2, 2.0))])
    return _level(_colour(3, 25, 800)(rng, samples) * road + 0.15 * _colour(1, 300, 4000)(rng, samples))


def street(rng: np.random.Generator, samples: int) -> Samples:
    """Vehicles that pass, each for some seconds."""
    at, out = _seconds(samples), 0.15 * _colour(1.5)(rng, samples)
    for middle in np.cumsum(rng.uniform(2, 6, int(samples / RATE_HZ / 2) + 2)):
        out = out + np.exp(-((at - middle) / rng.uniform(0.6, 1.5)) ** 2) * _colour(
            rng.uniform(1, 2), 40, 6000)(rng, samples)
    return _level(out)


def wind(rng: np.random.Generator, samples: int) -> Samples:
    """Wind in a microphone."""
    points = int(samples / RATE_HZ) + 3
    gusts = np.interp(_seconds(samples), np.arange(points) * 0.9, rng.gamma(1.5, 1, points))
    return _level(_colour(2.2, 20, 2000)(rng, samples) * gusts)


def rain(rng: np.random.Generator, samples: int) -> Samples:
    """Drops on a roof."""
    drops = (rng.random(samples) < 0.004) * rng.exponential(1, samples)
    drop = np.exp(-np.arange(60) / 12) * rng.standard_normal(60)
    return _level(0.5 * _colour(0.3, 800, 11_000)(rng, samples) + 2 * np.convolve(drops, drop, "same"))


def keyboard(rng: np.random.Generator, samples: int) -> Samples:
    """Somebody types."""
    def key() -> Samples:
        down, up = (np.convolve(rng.standard_normal(500), [0.5, 1, 0.5], "same") * np.exp(
            -np.arange(500) / rng.uniform(40, 120)) for _ in range(2))
        return rng.uniform(0.4, 1) * np.concatenate([down, np.zeros(900), 0.4 * up])

    places = np.cumsum(rng.gamma(2, 0.09, int(samples / RATE_HZ * 8)))
    return _level(_sum_at(samples, places[places < samples / RATE_HZ], key) + 0.02 * _colour(1)(rng, samples))


def dishes(rng: np.random.Generator, samples: int) -> Samples:
    """Plates and glasses: clinks that ring."""
    def clink() -> Samples:
        length = int(rng.uniform(0.05, 0.3) * RATE_HZ)
        at = _seconds(length)
        rings = [rng.uniform(0.2, 1) * np.sin(2 * np.pi * rng.uniform(1500, 7000) * at) for _ in range(4)]
        return np.asarray(sum(rings)) * np.exp(-at * rng.uniform(15, 60)) * rng.uniform(0.2, 1)

    places = np.cumsum(rng.exponential(0.5, int(samples / RATE_HZ * 3)))
    return _level(_sum_at(samples, places[places < samples / RATE_HZ], clink) + 0.03 * _colour(1)(rng, samples))


def railway(rng: np.random.Generator, samples: int) -> Samples:
    """A carriage: rumble, and the joints of the rails, two by two."""
    def joint() -> Samples:
        knock = _colour(1, 60, 1500)(rng, 2400) * np.exp(-np.arange(2400) / 500)
        return np.concatenate([knock, np.zeros(2000), knock])

    places = np.arange(0.5, samples / RATE_HZ, rng.uniform(0.9, 1.4))
    return _level(_colour(2, 30, 3000)(rng, samples) + 2 * _sum_at(samples, places, joint))


KINDS: dict[str, Callable[[np.random.Generator, int], Samples]] = {
    "white": _colour(0), "pink": _colour(1), "brown": _colour(2), "blue": _colour(-1), "violet": _colour(-2),
    "fan": fan, "vacuum cleaner": vacuum_cleaner, "car": car, "street": street, "wind": wind, "rain": rain,
    "keyboard": keyboard, "dishes": dishes, "railway": railway}
