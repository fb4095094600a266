"""Training audio as an endless stream: utterances with gaps, levels and noises as a microphone would hear them."""

from __future__ import annotations

import numpy as np

from talker import synth
from talker.config import FRAME_SAMPLES, Work


def coloured_noise(rng: np.random.Generator, samples: int, kind: str, level: float) -> np.ndarray:
    """White or pink (1/f) noise [samples] with RMS `level`."""
    noise = rng.standard_normal(samples).astype(np.float32)
    if kind == "pink":
        spectrum = np.fft.rfft(noise)
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1.0))
        noise = np.fft.irfft(spectrum, samples).astype(np.float32)
    return noise * np.float32(level / (np.sqrt(np.mean(noise**2)) + 1e-9))


class Speech:
    """Random access to one split's packed utterances."""

    def __init__(self, work: Work, split: str) -> None:
        self.pcm, self.clips = synth.load(work, split)

    def clip(self, index: int) -> np.ndarray:
        """float32 [samples] of utterance `index`."""
        return synth.clip_pcm(self.pcm, self.clips[index])

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """float32 [samples] of a random utterance."""
        return self.clip(int(rng.integers(len(self.clips))))

    def babble(self, rng: np.random.Generator, samples: int, level: float, voices: int = 8) -> np.ndarray:
        """`voices` people talking at once: noise that is made of speech, RMS `level`."""
        out = np.zeros(samples, np.float32)
        for _ in range(voices):
            start = int(rng.integers(len(self.pcm) - samples))
            out += self.pcm[start : start + samples].astype(np.float32)
        return out * np.float32(level / np.sqrt(np.mean(out**2)))


class Stream:
    """Crops of speech for the codec: 6 % reply clips, gaps, gain from -14 to +5 dB, some noise."""

    def __init__(self, work: Work, seed: int, reply_share: float = 0.06, noise_share: float = 0.25) -> None:
        self.rng = np.random.default_rng(seed)
        self.train, self.replies = Speech(work, "train"), Speech(work, "replies")
        self.reply_share, self.noise_share = reply_share, noise_share

    def crop(self, samples: int) -> np.ndarray:
        """float32 [samples]: utterances one after the other with gaps between 0 and 1.2 s."""
        rng, out, at = self.rng, np.zeros(samples, np.float32), 0
        first = True
        while at < samples:
            reply = rng.random() < self.reply_share
            pcm = (self.replies if reply else self.train).random(rng)
            if not reply:
                pcm = pcm * np.float32(10 ** (rng.uniform(-14, 5) / 20) if rng.random() < 0.4 else 1.0)
            if first and rng.random() < 0.8:  # begin inside an utterance
                pcm = pcm[int(rng.integers(len(pcm) * 3 // 4)) :]
            elif rng.random() < 0.5:
                at += int(rng.uniform(0, 1.2) * 24_000)
            first = False
            piece = pcm[: max(0, samples - at)]
            out[at : at + len(piece)] += piece
            at += len(pcm) + int(rng.uniform(0, 0.15) * 24_000)
        if rng.random() < self.noise_share:
            kind, level = rng.choice(["white", "pink"]), 10 ** (rng.uniform(-65, -32) / 20)
            out += coloured_noise(rng, samples, kind, level)
            if rng.random() < 0.08:  # noise alone
                out = coloured_noise(rng, samples, kind, 10 ** (rng.uniform(-50, -20) / 20))
        return np.clip(out, -1.0, 1.0)

    def batch(self, size: int, frames: int) -> np.ndarray:
        """float32 [size, 1, frames * 1920]."""
        return np.stack([self.crop(frames * FRAME_SAMPLES) for _ in range(size)])[:, None]
