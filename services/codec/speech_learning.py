"""Learning what codes are worth as speech: logistic regression on a frame's codes.

The log odds of a frame are the sum of a number for each of its codes. That number is linear in the codebook's entry, so
that a few minutes of audio say something about entries that never came up, plus a part of the entry's own, which needs
more to be learnt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from moshi.models.compression import MimiModel
from torch import Tensor
from torch.nn import functional as F

from services.codec.listening import bundled_clips, recording
from services.codec.speech_table import UNITS, Table

MEAN_FRAMES = 3  # a frame is judged by the mean of itself and its neighbours, as the gateway does
PRIOR = 0.4  # how much an entry's own part is held towards 0, in frames; the linear part a tenth of that
MOST_STEPS = 120
RECORDINGS, FRAMES, AT_ONCE = 48, 50, 8  # for weights without a table


def learn(mimi: MimiModel, codes: npt.NDArray[np.int64], speech: npt.NDArray[np.bool_],
          clear: npt.NDArray[np.bool_]) -> Table:
    """From the codes [recordings, frames, codebooks] of recordings, labelled [recordings, frames]: whether there is
    speech in a frame, and whether that is clear.
    """
    books = [_codebooks(rvq) for rvq in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest)]
    entries = torch.cat(books).shape[1]
    codebooks = codes.shape[2]
    where = torch.from_numpy(codes + np.arange(codebooks) * entries)
    middle = slice(MEAN_FRAMES // 2, -(MEAN_FRAMES // 2))
    told = torch.from_numpy(clear[:, middle])
    wanted = torch.from_numpy(speech[:, middle]).float()[told]
    own = torch.zeros(codebooks * entries, requires_grad=True)
    lines = [torch.zeros(book.shape[2], requires_grad=True) for book in books]
    bias = torch.zeros((), requires_grad=True)

    def worth() -> Tensor:
        linear = torch.cat([(book @ line).flatten() for book, line in zip(books, lines, strict=True)])
        return linear[:codebooks * entries] + own

    optimiser = torch.optim.LBFGS([own, *lines, bias], max_iter=MOST_STEPS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        odds = (worth()[where].sum(2).unfold(1, MEAN_FRAMES, 1).mean(2) + bias)[told]
        held = (own ** 2).sum() + 0.1 * sum((line ** 2).sum() for line in lines)
        loss = F.binary_cross_entropy_with_logits(odds, wanted) + PRIOR / len(wanted) * held
        loss.backward()
        return float(loss.detach())

    optimiser.step(closure)
    with torch.no_grad():
        table = (worth().view(codebooks, entries) + bias / codebooks) * UNITS
        return table.round().clamp(-127, 127).to(torch.int8).numpy()


def learn_from_clips(mimi: MimiModel) -> Table:
    """For weights without a table: from the bundled voices, a few minutes of recordings made of them. Takes seconds."""
    rng, voices = np.random.default_rng(0), bundled_clips()
    heard = [recording(lambda rng: voices[int(rng.integers(len(voices)))], rng, FRAMES) for _ in range(RECORDINGS)]
    device = next(mimi.parameters()).device
    with torch.no_grad():
        codes = [mimi.encode(torch.from_numpy(np.stack([one.pcm for one in heard[first:first + AT_ONCE]]))[:, None]
                             .to(device)).transpose(1, 2).cpu() for first in range(0, RECORDINGS, AT_ONCE)]
    return learn(mimi, torch.cat(codes).numpy(), np.stack([one.speech for one in heard]),
                 np.stack([one.clear for one in heard]))


def _codebooks(rvq: object) -> Tensor:
    """Those in use [codebooks, entries, dimension], their entries of about unit length on average."""
    layers: Sequence[Tensor] = [layer.embedding for layer in rvq.vq.layers[:rvq.n_q]]  # type: ignore[attr-defined]
    books = torch.stack([entries.detach().float().cpu() for entries in layers])
    return books / books[0].pow(2).sum(-1).mean().sqrt()
