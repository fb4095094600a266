"""Labelled recordings to learn from what speech is: voices and noise, mixed as a microphone would hear them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.codec.noises import RATE_HZ, any_noise

FRAME = RATE_HZ * 80 // 1000
LEVEL = 0.08  # RMS of the clips' active speech, about -22 dBFS
SPEECH_RMS = 0.006  # of a clip's frame: speech above it
QUIET_RMS, CLEAR_RMS = 0.0015, 0.01  # frames between these may be called either, and teach nothing
GAIN_DB = (-14.0, 5.0)
SNR_DB = (3.0, 30.0)
NOISE_DBFS = (-65.0, -12.0)  # of noise alone

CLIPS = Path(__file__).parent / "clips.npz"
MU = 255.0

Pcm = npt.NDArray[np.float32]
Clip = Callable[[np.random.Generator], Pcm]


@dataclass(frozen=True)
class Recording:
    """What a microphone hears."""

    pcm: Pcm
    """[frames * FRAME]."""
    speech: npt.NDArray[np.bool_]
    """[frames]: whether somebody speaks."""
    clear: npt.NDArray[np.bool_]
    """[frames]: whether that is beyond doubt."""


def bundled_clips() -> list[Pcm]:
    """Sentences of some voices, at LEVEL: mu-law bytes, to be small."""
    with np.load(CLIPS, allow_pickle=False) as stored:
        companded = stored["mulaw"].astype(np.float32) / 127
        pcm = np.sign(companded) * ((1 + MU) ** np.abs(companded) - 1) / MU
        return [clip.astype(np.float32) for clip in np.split(pcm, stored["starts"][1:])]


def bundle(clips: Sequence[Pcm]) -> None:
    """Keep these as the bundled ones."""
    companded = [np.sign(clip) * np.log1p(MU * np.abs(clip)) / np.log1p(MU) for clip in clips]
    np.savez_compressed(CLIPS, mulaw=(np.concatenate(companded) * 127).round().astype(np.int8),
                        starts=np.cumsum([0, *(len(clip) for clip in clips[:-1])]))


def turns(clip: Clip, rng: np.random.Generator, frames: int) -> npt.NDArray[np.float64]:
    """Somebody speaks, pauses, speaks: clean, at LEVEL, [frames * FRAME]."""
    samples = frames * FRAME
    out, at = np.zeros(samples), int(rng.uniform(0.2, 2) * RATE_HZ)
    while at < samples - RATE_HZ:
        for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
            said = clip(rng)[:max(0, samples - at)]
            out[at:at + len(said)] += said
            at += len(said) + int(rng.uniform(0.05, 0.2) * RATE_HZ)
        at += int(rng.uniform(0.9, 2.5) * RATE_HZ)
    return out


def rms(pcm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each frame."""
    power: npt.NDArray[np.float64] = np.sqrt(np.mean(pcm.reshape(-1, FRAME) ** 2, axis=1))
    return power


def recording(clip: Clip, rng: np.random.Generator, frames: int) -> Recording:
    """Four in ten are noise alone, four speech in noise, two speech in a quiet room."""
    samples, kind = frames * FRAME, rng.random()
    if kind < 0.4:
        clean: npt.NDArray[np.float64] = np.zeros(samples)
        heard = any_noise(rng, samples) * 10 ** (rng.uniform(*NOISE_DBFS) / 20)
    else:
        clean, gain = turns(clip, rng, frames), 10 ** (rng.uniform(*GAIN_DB) / 20)
        noise_level = LEVEL * gain * 10 ** (-rng.uniform(*SNR_DB) / 20) if kind < 0.8 else 10 ** rng.uniform(-4.5, -3)
        heard = clean * gain + any_noise(rng, samples) * noise_level
    loud = rms(clean)
    return Recording(np.clip(heard, -1, 1).astype(np.float32), loud > SPEECH_RMS,
                     (loud < QUIET_RMS) | (loud > CLEAR_RMS))
