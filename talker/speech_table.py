"""`python -m talker.speech_table`: learn what a codec's codes are worth as speech; the table goes beside its weights.

The voices are those of the talker's training; evaluation (`python -m bench.direct`) has others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from services.codec.engine import EncodeEngine
from services.codec.listening import FRAME, Clip, recording
from services.codec.speech_learning import learn
from services.codec.speech_table import FILE
from services.mesh.checkpoint import load_mimi, resolve
from talker import synth
from talker.config import Work
from talker.stream import Speech

RECORDINGS, FRAMES, ROWS = 1600, 375, 32


def encoded(engine: EncodeEngine, clip: Clip, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [recordings, frames, codebooks], and speech and clear, bool [recordings, frames]."""
    rng, rows = np.random.default_rng(seed), list(range(ROWS))
    codes, speech, clear = [], [], []
    for _ in track(range(RECORDINGS // ROWS), description="recordings"):
        heard = [recording(clip, rng, FRAMES) for _ in rows]
        for row in rows:
            engine.open(row)
        frames = np.stack([one.pcm.reshape(-1, FRAME) for one in heard], 1)
        codes.append(np.stack([engine.step(rows, frame) for frame in frames], 1))
        speech += [one.speech for one in heard]
        clear += [one.clear for one in heard]
    return np.concatenate(codes), np.stack(speech), np.stack(clear)


def build(work: Work, checkpoint: str, seed: int) -> Path:
    """Learn the table of a checkpoint's codec from the work folder's training voices, and put it beside its weights."""
    info = resolve(checkpoint)
    mimi = load_mimi(info)
    path: Path = info.mimi_weights.parent / FILE
    np.save(path, learn(mimi, *encoded(EncodeEngine(mimi, ROWS), Speech(work, "train").random, seed)))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="checkpoints/talker")
    parser.add_argument("--work", type=Path, default=Path("build/talker"))
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=25.0, help="of speech, if the work folder has none yet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = Work(args.work)
    synth.build(work, args.minutes, args.seed, splits=("train",))
    print(f"learnt {build(work, args.checkpoint, args.seed)}")


if __name__ == "__main__":
    main()
