"""Moshi's reference conversation loop for files: the default `converse` of the evaluation.

A `converse` takes float32 PCM at 24 kHz and returns an `Answer`; one that can do several calls at once offers
`batch(pcms)` too. The mesh's version has the same shape, so the same evaluation runs through gRPC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from moshi.models import LMGen

from talker.config import EPAD, FRAME_SAMPLES, PAD
from talker.export import checkpoint


@dataclass
class Answer:
    """What came back: PCM aligned with the input (answer frame i was emitted when input frame i arrived), the text,
    and the text token of every frame."""

    pcm: np.ndarray
    text: str
    frames: list[int]


Converse = Callable[[np.ndarray], Answer]


class MoshiLoop:
    """moshi.server's loop without the sockets: Mimi is reset after the first encoded frame, which the model ignores."""

    def __init__(self, folder: Path, greedy: bool = True, seed: int = 0, temp: float | None = None,
                 text_temp: float | None = None) -> None:
        info = checkpoint(folder)
        self.mimi = info.get_mimi()
        self.tokenizer = info.get_text_tokenizer()
        settings = dict(info.lm_gen_config)
        if temp is not None:
            settings["temp"] = temp
        if text_temp is not None:
            settings["temp_text"] = text_temp
        self.lm = LMGen(info.get_moshi(dtype=torch.float32), use_sampling=not greedy, **settings)
        self.seed = seed

    def __call__(self, pcm: np.ndarray) -> Answer:
        return self.batch([pcm])[0]

    @torch.no_grad()
    def batch(self, pcms: list[np.ndarray]) -> list[Answer]:
        """Several calls in one batch (padded with silence to the longest)."""
        torch.manual_seed(self.seed)
        frames = max(-(-len(p) // FRAME_SAMPLES) for p in pcms)
        audio = np.zeros((len(pcms), frames * FRAME_SAMPLES), np.float32)
        for row, pcm in zip(audio, pcms, strict=True):
            row[: len(pcm)] = pcm
        said = np.zeros_like(audio)
        tokens: list[list[int]] = [[] for _ in pcms]
        with self.mimi.streaming(len(pcms)), self.lm.streaming(len(pcms)):
            for i in range(frames):
                at = slice(i * FRAME_SAMPLES, (i + 1) * FRAME_SAMPLES)
                codes = self.mimi.encode(torch.from_numpy(audio[:, None, at].copy()))
                if i == 0:
                    self.mimi.reset_streaming()
                out = self.lm.step(codes)
                if out is None:
                    for row_tokens in tokens:
                        row_tokens.append(PAD)
                    continue
                said[:, at] = self.mimi.decode(out[:, 1:])[:, 0].numpy()
                for row_tokens, token in zip(tokens, out[:, 0, 0].tolist(), strict=True):
                    row_tokens.append(token)
        return [Answer(p, self._text(t), t) for p, t in zip(said, tokens, strict=True)]

    def _text(self, tokens: list[int]) -> str:
        pieces = [self.tokenizer.id_to_piece(t) for t in tokens if t not in (EPAD, PAD)]
        return "".join(pieces).replace("\u2581", " ").strip()
