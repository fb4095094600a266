"""How many past frames bring a codec's row at another replica to where it was: `python -m bench.priming`.

A row hears a long call; another one is primed with the call's last frames only. Both then go on with the same audio (or
codes), and the share of equal codes (or the largest difference of samples) says how close they are. Full-size Mimi's
weights are random: real ones are not needed to see how far its layers hear. Takes minutes on a CPU core.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from moshi.models import loaders

from scripts.random_checkpoint import CODEBOOKS, random_mimi, speech_like
from services.codec.engine import DecodeEngine, EncodeEngine, build_engines
from services.mesh.checkpoint import load_mimi, resolve

PRIMED = (32, 64, 125, 250, 375, 500)
BEFORE, AFTER = 1100, 25
"""Frames of the call before the move, more than full-size Mimi hears, and after it."""
FULL_SIZE: dict[str, Any] = loaders._mimi_config | {"quantizer": loaders._quantizer_kwargs | {"n_q": CODEBOOKS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="measure this one instead of full-size random weights")
    parser.add_argument("--layer-scale", type=float, default=0.3, help="how much each layer of the random ones adds")
    parser.add_argument("--seed", type=int, default=0, help="of the audio")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        mimi = (load_mimi(resolve(options.checkpoint)) if options.checkpoint
                else random_mimi(FULL_SIZE, options.layer_scale))
        encoder, decoder = build_engines(mimi, 2)
        torch.manual_seed(options.seed)
        sound = speech_like((BEFORE + AFTER) * mimi.frame_size // mimi.sample_rate + 1)[0, 0].numpy()
    pcm = sound[:(BEFORE + AFTER) * mimi.frame_size].reshape(-1, mimi.frame_size)
    said = goes_on(encoder, 0, pcm[:0], pcm)
    codes = said[BEFORE:]
    samples = goes_on(decoder, 0, said[:BEFORE], codes)
    print(f"hears {encoder.facts.priming_frames} and {decoder.facts.priming_frames} frames back at most")
    print("primed with   codes equal   samples differ by")
    for frames in PRIMED:
        equal = (goes_on(encoder, 1, pcm[BEFORE - frames:BEFORE], pcm[BEFORE:]) == codes).mean()
        off = np.abs(goes_on(decoder, 1, said[BEFORE - frames:BEFORE], codes) - samples).max()
        print(f"{frames:11d}   {equal:11.1%}   {off:.1e} of {np.abs(samples).max():.2f}")


def goes_on(engine: EncodeEngine | DecodeEngine, row: int, past: Any, frames: Any) -> np.ndarray[Any, Any]:
    """What a row that was primed answers to more frames."""
    engine.open(row)
    for _ in engine.prime(row, past):
        pass
    return np.concatenate([engine.step([row], frame[None]) for frame in frames])


if __name__ == "__main__":
    main()
