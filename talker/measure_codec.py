"""How well speech survives the codec: STOI, ESTOI, PESQ, closed-set recognition, open-vocabulary WER."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from talker import ears
from talker.config import FRAME_SAMPLES, Work
from talker.export import checkpoint
from talker.stream import Speech

CLOSED_SET = 25


@torch.no_grad()
def through(mimi, pcm: np.ndarray) -> np.ndarray:
    """PCM after encode and decode."""
    frames = -(-len(pcm) // FRAME_SAMPLES)
    padded = np.zeros(frames * FRAME_SAMPLES, np.float32)
    padded[: len(pcm)] = pcm
    return mimi.decode(mimi.encode(torch.from_numpy(padded)[None, None]))[0, 0].numpy()[: len(pcm)]


def measure(folder: Path, work: Work) -> dict:
    """The codec's keys of `out/talk.json`."""
    mimi, out = checkpoint(folder).get_mimi(), {}
    for split, suffix in (("heldout", ""), ("heldout_voice", "_heldout_voice")):
        speech = Speech(work, split)
        texts = [c.text for c in speech.clips]
        rows, errors, count, original_errors, right = [], 0, 0, 0, 0
        for i in track(range(len(texts)), description=f"codec {split}"):
            clean = speech.clip(i)
            coded = through(mimi, clean)
            heard = ears.transcribe(coded)
            wrong, said = ears.word_errors(texts[i], heard)
            errors, count = errors + wrong, count + said
            original_errors += ears.word_errors(texts[i], ears.transcribe(clean))[0]
            if i < CLOSED_SET:
                right += ears.recognise(coded, texts[:CLOSED_SET]) == i
            rows.append((ears.stoi(clean, coded), ears.stoi(clean, coded, extended=True), ears.pesq_wb(clean, coded)))
        mean = np.mean(rows, 0)
        out |= {f"stoi{suffix}": mean[0], f"estoi{suffix}": mean[1], f"pesq{suffix}": mean[2],
                f"wer_open{suffix}": errors / count, f"wer_original{suffix}": original_errors / count,
                f"closed_set{suffix}": right}
    return {k: round(float(v), 4) for k, v in out.items()} | {"closed_set_of": CLOSED_SET}
