"""Drawing tokens, for many sessions at once, without a global random generator.

A draw adds Gumbel noise to the logits and takes the largest: argmax(logits + temperature * gumbel) follows
softmax(logits / temperature), and temperature 0 is greedy. The noise of an entry is a function of (seed, step,
codebook, entry) alone, so a session's tokens never depend on the other sessions in its batch.

Hashing every entry would cost more than the model's own small layers. Instead the hash of (seed, step, codebook)
picks two windows of a fixed table of Gumbel values, and an entry's noise is the larger of its two values: the
maximum of two Gumbel variables is a Gumbel variable again (moved by log 2, which an argmax does not see). The table
holds each of its quantiles once, in random order, and is long enough that 200 000 draws from 64 entries can't be told
from the softmax by a chi-square test (with 2^18 values in plain random order they can: 1.4 to 2.2 per degree).
"""

import torch
from torch import Tensor

WINDOWS = 2**20
"""Places a window can start at; two windows make 2^40 different vectors of noise."""

# The constants of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), as int64.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def gumbel_table(entries: int) -> Tensor:
    """The fixed noise, float32 [WINDOWS + entries]: the same on every machine and in every version."""
    length = WINDOWS + entries
    uniform = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    table = torch.empty(length)
    table[torch.argsort(mix(torch.arange(length) * _GAMMA))] = -torch.log(-torch.log(uniform)).float()
    return table


def mix(key: Tensor) -> Tensor:
    """SplitMix64's output function on int64, any shape. Shifts are masked since torch shifts in the sign."""
    key = (key ^ ((key >> 30) & (2**34 - 1))) * _MIX_1
    key = (key ^ ((key >> 27) & (2**37 - 1))) * _MIX_2
    return key ^ ((key >> 31) & (2**33 - 1))


def window_starts(seed: Tensor, step: Tensor, streams: Tensor) -> Tensor:
    """Where the windows of a step begin, int64 [n, streams, 2], from seed [n], step [n] and stream numbers."""
    key = mix(mix(seed + _GAMMA) + step * _GAMMA)
    key = mix(key[:, None] + streams * _GAMMA)
    return torch.stack((key & (WINDOWS - 1), (key >> 32) & (WINDOWS - 1)), dim=-1)


def noise(table: Tensor, starts: Tensor, entries: int) -> Tensor:
    """Gumbel noise [n, streams, entries] from starts [n, streams, 2] of windows."""
    windows = table.as_strided((WINDOWS, entries), (1, 1))
    pairs = windows.index_select(0, starts.flatten()).view(*starts.shape, entries)
    return pairs.amax(dim=2)


def reshaped(logits: Tensor, padding: int, bonus: Tensor, penalty: Tensor, recent: Tensor) -> Tensor:
    """Text logits [n, entries] with padding's raised by bonus [n, 1], and those of recent tokens [n, m] divided by
    penalty [n, 1] where they are positive and multiplied where they are not. Bonus 0 and penalty 1 change nothing.

    A bonus of temperature * b multiplies padding's probability by e^b.
    """
    repeated = torch.zeros_like(logits).scatter(1, recent, 1.0)
    logits = torch.where(repeated > 0, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    return logits.index_add(1, torch.full_like(recent[0, :1], padding), bonus)


def draw_by_threshold(logits: Tensor, noise: Tensor, temperature: Tensor, top_k: Tensor, max_top_k: int) -> Tensor:
    """Tokens int64 [n, 1] from logits and noise [n, entries], temperature and top_k [n, 1].

    No decision on the host, hence fit for a CUDA graph. `max_top_k` bounds every row's top_k, a shape of the graph.
    """
    kept = logits.topk(max_top_k, dim=-1).values.gather(-1, top_k - 1)
    score = torch.addcmul(logits, temperature, noise)
    return score.masked_fill(logits < kept, float("-inf")).argmax(dim=-1, keepdim=True)


@torch.jit.script
def largest(values: Tensor) -> Tensor:
    """Index of each row's largest value, int64 [n, 1], the first of equals: `argmax` for the CPU.

    PyTorch has vector code for the largest value but not for its index, so for many rows it pays to find the best
    block of 64 first.
    """
    if values.numel() < 32768 or values.size(1) % 64 != 0:
        return values.argmax(dim=-1, keepdim=True)
    start = values.view(values.size(0), -1, 64).amax(dim=-1).argmax(dim=-1, keepdim=True) * 64
    block = values.gather(1, start + torch.arange(64))
    return start + block.argmax(dim=-1, keepdim=True)


@torch.jit.script
def draw_by_rejection(logits: Tensor, noise: Tensor, temperature: Tensor, top_k: Tensor) -> Tensor:
    """As `draw_by_threshold`, same tokens, without looking for the k largest logits: the CPU's way.

    The winner among all entries is the winner among the top-k if it is one of them, which for a trained model it
    nearly always is. If not, no entry with a smaller logit is among them either: those leave, and the row tries again.
    """
    score = torch.addcmul(logits, temperature, noise)
    token: Tensor = largest(score)
    reached = logits.gather(-1, token)
    outside = ((logits > reached).sum(dim=-1) >= top_k.squeeze(1)).nonzero().squeeze(1)
    rows = outside
    while outside.numel() > 0:
        logits = logits.index_select(0, outside)
        score = score.index_select(0, outside).masked_fill(logits <= reached.index_select(0, outside), float("-inf"))
        top_k = top_k.index_select(0, outside)
        again = largest(score)
        token.index_copy_(0, rows, again)
        reached = logits.gather(-1, again)
        outside = ((logits > reached).sum(dim=-1) >= top_k.squeeze(1)).nonzero().squeeze(1)
        rows = rows.index_select(0, outside)
    return token
