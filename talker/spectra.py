"""Spectra for the losses: log-mel and narrow-band magnitudes of [B, T] PCM at 24 kHz."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from talker.config import SAMPLE_RATE_HZ


@lru_cache
def mel_matrix(n_fft: int, mels: int) -> Tensor:
    """Triangular mel filters [mels, n_fft // 2 + 1] from 50 Hz to 11 kHz, each normalised to unit sum."""
    def to_mel(hz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hz / 700)

    low, high = to_mel(torch.tensor([50.0, 11_000.0]))
    edges_hz = 700 * (10 ** (torch.linspace(low, high, mels + 2) / 2595) - 1)
    bins_hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, n_fft // 2 + 1)
    rising = (bins_hz - edges_hz[:-2, None]) / (edges_hz[1:-1] - edges_hz[:-2])[:, None]
    falling = (edges_hz[2:, None] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp(min=0)
    # a filter narrower than a bin would be empty: give it its nearest bin
    nearest = (bins_hz[None] - edges_hz[1:-1, None]).abs().argmin(1)
    filters[torch.arange(mels), nearest] += (filters.sum(1) == 0).float()
    return filters / filters.sum(1, keepdim=True)


def magnitude(pcm: Tensor, n_fft: int, hop: int) -> Tensor:
    """STFT magnitudes [B, bins, frames]; frame i is centred on sample i * hop."""
    window = torch.hann_window(n_fft)
    spec = torch.stft(pcm, n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    return (spec.real.square() + spec.imag.square() + 1e-9).sqrt()


def log_mel(mag: Tensor, n_fft: int, mels: int, floor: float) -> Tensor:
    """log(mel + floor) [B, mels, frames] of magnitudes; `floor` keeps silence from dominating the loss."""
    return torch.log(mel_matrix(n_fft, mels) @ mag + floor)


@lru_cache
def third_octaves(n_fft: int, bands: int = 15, lowest_hz: float = 150.0) -> Tensor:
    """0/1 matrix [bands, n_fft // 2 + 1] of the third-octave bands that STOI listens in (150 Hz to 4.3 kHz)."""
    centres = lowest_hz * 2 ** (torch.arange(bands) / 3)
    bins_hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, n_fft // 2 + 1)
    low, high = centres * 2 ** (-1 / 6), centres * 2 ** (1 / 6)
    return ((bins_hz >= low[:, None]) & (bins_hz < high[:, None])).float()


def envelope_mismatch(said: Tensor, wanted: Tensor) -> Tensor:
    """1 - the mean of STOI-like and ESTOI-like correlations of [B, T] PCM, where `wanted` has speech.

    The envelopes of 15 third-octave bands are compared in windows of 0.4 s, as in Taal et al. 2011 and Jensen & Taal
    2016 (without their clipping and silence removal; windows 40 dB below the loudest don't count).
    """
    n_fft, hop, window = 640, 320, 30
    bands = third_octaves(n_fft)

    def envelopes(pcm: Tensor) -> Tensor:
        power = magnitude(pcm, n_fft, hop).square()
        return (bands @ power + 1e-6).sqrt().unfold(2, window, 10).transpose(1, 2)  # [B, windows, 15, 30]

    def standard(x: Tensor, dim: int) -> Tensor:
        x = x - x.mean(dim, keepdim=True)
        return x / (x.square().sum(dim, keepdim=True) + 1e-4).sqrt()

    a, b = envelopes(said), envelopes(wanted)
    level = b.square().mean((2, 3))
    counts = (level > 1e-4 * level.max()).float()
    rows_a, rows_b = standard(a, 3), standard(b, 3)
    stoi = (rows_a * rows_b).sum(3).mean(2)
    estoi = (standard(rows_a, 2) * standard(rows_b, 2)).sum(2).mean(2)
    return 1 - ((0.5 * stoi + 0.5 * estoi) * counts).sum() / counts.sum().clamp(min=1)
