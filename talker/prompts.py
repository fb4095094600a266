"""Prompts of the training, laid out in time as the service lays them out (services/lm/prompts.py)."""

from __future__ import annotations

import numpy as np
import sentencepiece
import torch

from talker import codec, synth, texts
from talker.config import EPAD, FRAME_SAMPLES, PAD, Work

SILENT_FRAMES = 6  # behind the voice, and behind the text
SHORTEST_VOICE, LONGEST_VOICE, LONGEST_TEXT = 24, 60, 26  # frames
OTHER_TEXTS = 200  # that ask for nothing


def laid_out(voice: np.ndarray, text: list[int], silence: np.ndarray) -> np.ndarray:
    """int64 [17, P]: text, own and user codes of a prompt: the voice [8, n], silence, one text token a frame, silence.

    Without a voice (n = 0) or a text, nor is there the silence behind it.
    """
    spoken, quiet = voice.shape[1], [PAD] * SILENT_FRAMES
    tokens = np.array([PAD] * spoken + (quiet if spoken else []) + ([*text, *quiet] if text else []), np.int64)
    user = np.repeat(silence[:, None], len(tokens), 1)
    own = user.copy()
    own[:, :spoken] = voice
    return np.concatenate([tokens[None], own, user])


class Prompts:
    """The recordings of each of synth.REPLY_VOICES, and the texts that ask for each of texts.MANNERS."""

    def __init__(self, work: Work, mimi, tokenizer: sentencepiece.SentencePieceProcessor, silence: np.ndarray,
                 seed: int) -> None:
        """`silence` are the codes [8] that mean it."""
        self._silence, self._voices = silence, _encoded(work, mimi)
        others = [text for text in texts.training_sentences(OTHER_TEXTS, seed) if "happy" not in text]
        asked = [others if manner is texts.PLAIN else manner.asked for manner in texts.MANNERS]
        self._texts = [[tokens for tokens in (tokenized(tokenizer, text) for text in some)
                        if len(tokens) <= LONGEST_TEXT] for some in asked]

    def draw(self, rng: np.random.Generator, voice: int | None, manner: int | None) -> np.ndarray:
        """int64 [17, P]: a prompt of this voice and a text for this manner; None leaves it out."""
        spoken = self._silence[:, None][:, :0] if voice is None else some_of(rng, _one(rng, self._voices[voice]))
        text = [] if manner is None else _one(rng, self._texts[manner])
        return laid_out(spoken, text, self._silence)


def tokenized(tokenizer: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """A text prompt's tokens: those that say something."""
    return [token for token in tokenizer.encode(text) if token not in (PAD, EPAD)]


def some_of(rng: np.random.Generator, recording: np.ndarray) -> np.ndarray:
    """A piece of a recording [8, n]: few recordings have many of them."""
    most = recording.shape[1]
    frames = int(rng.integers(min(SHORTEST_VOICE, most), most + 1))
    begin = int(rng.integers(most - frames + 1))
    return recording[:, begin : begin + frames]


def _one(rng: np.random.Generator, some: list):
    return some[int(rng.integers(len(some)))]


def _encoded(work: Work, mimi) -> list[list[np.ndarray]]:
    """Codes [8, n] of each voice's recordings; whole frames, as a gateway sends them."""
    pcm, clips = synth.load(work, "prompts")
    out = []
    for engine, voice in synth.REPLY_VOICES:
        said = [synth.clip_pcm(pcm, clip) for clip in clips if clip.voice == f"{engine}:{voice}"]
        frames = [min(len(one) // FRAME_SAMPLES, LONGEST_VOICE) for one in said]
        batch = np.zeros((len(said), LONGEST_VOICE * FRAME_SAMPLES), np.float32)
        for row, one, n in zip(batch, said, frames, strict=True):
            row[: n * FRAME_SAMPLES] = one[: n * FRAME_SAMPLES]
        codes = codec.encode_live(mimi, torch.from_numpy(batch)).numpy()
        out.append([code[:, :n] for code, n in zip(codes, frames, strict=True)])
    return out
