"""How far TF32 and bf16 put Mimi off, worked out on a CPU: python -m bench.gpu.mimi_rounding [--official]

TF32 is emulated: what goes into a product (linear, convolution, attention) keeps 10 bits after the point, and sums stay
float32. Tensor cores cut the rest off where nobody has rounded it, so both are measured. bf16 is the engine's own, in
the operators that a GPU runs. The sound is samples/*.wav, on the bundled checkpoint's Mimi or on a random one of the
official shape. Prints JSON: by precision the decoder's signal to noise in dB (its sound of the same codes beside exact
sound) and the share of equal codes of the same sound.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from moshi.models import loaders
from moshi.models.compression import MimiModel
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from harness.load import read_speech
from scripts.random_checkpoint import random_mimi
from services.codec import engine, packed
from services.codec.precision import CodecPrecision
from services.mesh.checkpoint import load_mimi, resolve

PRODUCTS = (functional.linear, functional.conv1d, functional.conv2d, torch.matmul, torch.bmm,
            functional.scaled_dot_product_attention)
DROPPED = 13
"""Of float32's 23 bits after the point."""


def nearest(x: Tensor) -> Tensor:
    """Float32 with 10 bits after the point, halves to the even one."""
    bits = x.contiguous().view(torch.int32)
    half = (1 << DROPPED - 1) - 1 + (bits >> DROPPED & 1)
    return ((bits + half) & -(1 << DROPPED)).view(torch.float32)


def cut(x: Tensor) -> Tensor:
    """Float32 with the first 10 bits after the point."""
    return (x.contiguous().view(torch.int32) & -(1 << DROPPED)).view(torch.float32)


class Tf32(TorchFunctionMode):
    """Products of rounded tensors, where two are multiplied."""

    def __init__(self, rounded: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._rounded = rounded

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch has it."""
        if function in PRODUCTS:
            args = [self._rounded(part) if isinstance(part, Tensor) and part.dtype == torch.float32 and index < 2
                    else part for index, part in enumerate(args)]
        return function(*args, **kwargs or {})


def tick(mimi: MimiModel, sound: NDArray[np.float32], precision: CodecPrecision = "fp32",
         given: NDArray[np.int64] | None = None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The codes of a sound [frames, samples], and the sound of them or of the given ones."""
    encoder, decoder = engine.build_engines(mimi, 1, precision)
    for half in (encoder, decoder):
        half.open(0)
        half._run._capture = lambda run: run  # type: ignore[assignment]  # a trace has no bits to look at
    codes = np.stack([encoder.step([0], frame[None])[0] for frame in sound])
    pcm = np.stack([decoder.step([0], frame[None])[0] for frame in (codes if given is None else given)])
    return codes, pcm


def compared(mimi: MimiModel, sound: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Each precision beside the exact one."""
    exact_codes, exact = tick(mimi, sound)
    found: dict[str, dict[str, float]] = {}

    def add(name: str, codes: NDArray[np.int64], pcm: NDArray[np.float32]) -> None:
        signal_to_noise = 20 * np.log10(np.linalg.norm(exact) / np.linalg.norm(pcm - exact))
        found[name] = {"snr_db": round(float(signal_to_noise), 1), "largest_error": float(np.abs(pcm - exact).max()),
                       "equal_codes": float((codes == exact_codes).mean()),
                       "equal_first_codebook": float((codes == exact_codes)[:, 0].mean())}

    for name, rounded in (("tf32, nearest", nearest), ("tf32, cut off", cut)):
        with Tf32(rounded):
            add(name, *tick(mimi, sound, given=exact_codes))
    add("bf16", *tick(mimi, sound, "bf16", exact_codes))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", action="store_true", help="random weights of the official shape")
    parser.add_argument("--frames", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # What a GPU runs: plain operators, and lower precisions.
    packed.packs = lambda weight: False
    engine.set_precision = lambda precision, device: None  # type: ignore[attr-defined]
    with torch.no_grad():
        mimi = (random_mimi(loaders._mimi_config) if options.official
                else load_mimi(resolve("checkpoints/talker"))).eval()
    sound = np.concatenate([np.frombuffer(part, "<i2") for part in read_speech(Path("samples"))])
    frames = sound[: len(sound) // 1920 * 1920].reshape(-1, 1920)[: options.frames].astype(np.float32) / 32768
    print(json.dumps({"frames": len(frames), "official_shape": options.official, "result": compared(mimi, frames)}))


if __name__ == "__main__":
    main()
