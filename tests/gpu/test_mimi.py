"""What Mimi's engines must give on every device, and how far its lower precisions are off.

The weights are random, of the small checkpoints' shape, with codebooks that fit what the encoder makes of sound.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from moshi.models.compression import MimiModel
from moshi.utils.compile import no_compile
from numpy.typing import NDArray

from scripts.random_checkpoint import random_mimi, speech_like
from services.codec import packed
from services.codec.engine import build_engines
from services.codec.precision import CodecPrecision

FRAMES = 20


@pytest.fixture(scope="module")
def mimi() -> MimiModel:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with torch.no_grad():
        return random_mimi().eval()


def tick(mimi: MimiModel, device: str, precision: CodecPrecision, given: NDArray[np.int64] | None = None
         ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes of two callers' speech [frames, 2, codebooks], and the sound of them (or of `given`)."""
    encoder, decoder = build_engines(mimi.to(device), 3, precision)
    mimi.to("cpu")
    torch.manual_seed(1)
    sound = speech_like(2)[0, 0].numpy()[: FRAMES * 1920].reshape(FRAMES, 1920)
    codes, pcm = [], []
    for row in range(2):
        encoder.open(row)
        decoder.open(row)
    for number, frame in enumerate(sound):
        codes.append(encoder.step([1, 0], np.stack([frame, frame * 0.5])))
        pcm.append(decoder.step([1, 0], codes[-1] if given is None else given[number]))
    return np.stack(codes), np.stack(pcm)


def test_exact_products_give_moshis_own_sound(mimi: MimiModel, device: str) -> None:
    codes, pcm = tick(mimi, device, "fp32")
    with torch.no_grad(), no_compile(), mimi.streaming(2):
        sound = [mimi.decode(torch.from_numpy(frame)[:, :, None])[:, 0].numpy() for frame in codes]
    assert float(np.abs(np.stack(sound) - pcm).max()) < 2e-4
    exact, _ = tick(mimi, "cpu", "fp32")
    assert float((exact == codes).mean()) > (0.9999 if device == "cpu" else 0.98), "near ties may go the other way"


@pytest.mark.parametrize(("precision", "most_off"), [("tf32", 0.01), ("bf16", 0.05)])
def test_lower_precisions_stay_within_their_bound(mimi: MimiModel, device: str, precision: CodecPrecision,
                                                  most_off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sound of the same codes, its error as a share of its size."""
    if device == "cpu":
        if precision == "tf32":
            pytest.skip("a CPU has no TF32")
        # The operators that a GPU runs, and not oneDNN's.
        monkeypatch.setattr(packed, "packs", lambda weight: False)
        monkeypatch.setattr("services.codec.engine.set_precision", lambda precision, device: None)
    codes, exact = tick(mimi, device, "fp32")
    _, rounded = tick(mimi, device, precision, codes)
    off = float(np.linalg.norm(rounded - exact) / np.linalg.norm(exact))
    assert 0 < off < most_off


def test_a_cpu_refuses_what_it_does_not_have(mimi: MimiModel) -> None:
    with pytest.raises(ValueError, match="--codec-precision bf16 is for GPUs; a CPU computes in fp32"):
        build_engines(mimi, 1, "bf16")
