"""What the talker says, as codes and text tokens on the frame grid.

Every line is spoken from exactly the same codes each time (encoded once, out of silence), so that a tiny language
model can learn them by heart and the decoder can be made to render them well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sentencepiece
import torch

from talker import synth, texts
from talker.config import EPAD, FRAME_SAMPLES, PAD, Work

LEAD_FRAMES, TAIL_FRAMES = 30, 3


@dataclass(frozen=True)
class Line:
    """One thing to say: codes [8, n] and text tokens [n] of its n frames, and its PCM [n * 1920]."""

    text: str
    codes: np.ndarray
    tokens: np.ndarray
    pcm: np.ndarray

    @property
    def frames(self) -> int:
        return self.codes.shape[1]


@dataclass(frozen=True)
class Book:
    """All lines, and the codes [8] that mean silence."""

    lines: list[Line]
    silence: np.ndarray


def align(text: str, frames: int, tokenizer: sentencepiece.SentencePieceProcessor) -> np.ndarray:
    """Text tokens [frames]: a word's pieces from its onset on, PAD elsewhere, EPAD just before a word after PAD.

    Onsets are shared out by letters, which for these short lines is within a frame or two of the true ones.
    """
    tokens = np.full(frames, PAD, np.int64)
    words = text.split()
    ends = np.cumsum([len(w) + 1.5 for w in words])
    spoken = frames - TAIL_FRAMES
    at = 0
    for word, onset in zip(words, np.concatenate([[0], ends[:-1]]) / ends[-1] * spoken, strict=True):
        start = max(at, round(onset))
        if start - 1 >= at and start > 0:
            tokens[start - 1] = EPAD
        for piece in tokenizer.encode(word):
            tokens[start] = piece
            start += 1
        at = start
    return tokens


def build(work: Work, mimi, tokenizer: sentencepiece.SentencePieceProcessor, voice: int = 0) -> Book:
    """Encode every line as one of synth.REPLY_VOICES says it, with the trained encoder."""
    pcm, clips = synth.load(work, "replies")
    clips = clips[voice * len(texts.LINES) : (voice + 1) * len(texts.LINES)]
    lines = []
    with torch.no_grad():
        quiet = mimi.encode(torch.zeros(1, 1, 60 * FRAME_SAMPLES))[0]
        for text, clip in zip(texts.LINES, clips, strict=True):
            frames = -(-clip.length // FRAME_SAMPLES) + TAIL_FRAMES
            track = np.zeros((LEAD_FRAMES + frames) * FRAME_SAMPLES, np.float32)
            start = LEAD_FRAMES * FRAME_SAMPLES
            track[start : start + clip.length] = synth.clip_pcm(pcm, clip)
            codes = mimi.encode(torch.from_numpy(track)[None, None])[0, :, LEAD_FRAMES:].numpy()
            lines.append(Line(text, codes, align(text, frames, tokenizer), track[start:]))
    return Book(lines, quiet[:, -1].numpy())
