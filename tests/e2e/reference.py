"""The loop of moshi's own server, for one caller: what the mesh must reproduce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from moshi.models import LMGen
from moshi.models import lm as moshi_lm

from services.mesh.checkpoint import load_lm, load_mimi, resolve


@dataclass(frozen=True)
class Reference:
    """What the reference loop said: tokens int64 [frames, 1 + codebooks], pcm float32 [samples]."""

    tokens: npt.NDArray[np.int64]
    pcm: npt.NDArray[np.float32]


@torch.no_grad()
def reference_loop(checkpoint: str, pcm: npt.NDArray[np.float32],
                   forced: Mapping[int, Sequence[int]] = MappingProxyType({})) -> Reference:
    """Greedy answer to `pcm`, which is padded to whole frames and followed by what flushes the delay line.

    As moshi/server.py: every frame is encoded and stepped, and Mimi is reset after the first one. `forced` are the
    tokens that some steps make instead of the likeliest ones, text first; -1 where it is the likeliest after all.
    """
    torch.set_num_threads(1)  # the services of the mesh share the machine with this loop
    info = resolve(checkpoint)
    mimi, lm = load_mimi(info), load_lm(info, dtype=torch.float32)
    generate = LMGen(lm, use_sampling=False)
    frame = mimi.frame_size
    padded = np.pad(pcm, (0, -len(pcm) % frame + max(lm.delays) * frame))
    tokens, audio = [], []
    draw, drawn = moshi_lm.sample_token, 0

    def sample(logits: torch.Tensor, *settings: object) -> torch.Tensor:
        nonlocal drawn
        step, stream = divmod(drawn, 1 + lm.dep_q)
        drawn += 1
        token = draw(logits, *settings)
        wanted = forced[step][stream] if step in forced else -1
        return token if wanted < 0 else torch.full_like(token, wanted)

    with mock.patch.object(moshi_lm, "sample_token", sample), mimi.streaming(1), generate.streaming(1):
        for index, begin in enumerate(range(0, len(padded), frame)):
            codes = mimi.encode(torch.from_numpy(padded[begin:begin + frame])[None, None])
            if index == 0:
                mimi.reset_streaming()
            step = generate.step(codes)
            if step is not None:
                tokens.append(step[0, :, 0].numpy().copy())
                audio.append(mimi.decode(step[:, 1:])[0, 0].numpy().copy())
    return Reference(np.array(tokens), np.concatenate(audio))
