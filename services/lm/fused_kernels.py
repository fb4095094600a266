"""What lies between a step's matrix products on a GPU, in Triton: a kernel each, where torch takes three to twelve.

A step of the 7 B model has some three hundred pairs of products with next to nothing between them; at one row a kernel
of a few KB takes as long as its launch. So what counts here is how many there are, not how fast each is.

The residual stream, scores and sums are float32, as elsewhere. What goes into a product is written in the product's own
type (`kind`): torch would round it there. What comes out of one is read in the type that it has.

A program does one row (of `depth_attend` one head, too), all of its columns at once.

Imports Triton, which a CPU's torch does not bring. With TRITON_INTERPRET=1 in the environment when this file is
imported, it runs on a CPU, slowly: for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.lm.sampler import _GAMMA, _MIX_1, _MIX_2, WINDOWS


def _warps(columns: int) -> int:
    """Of a program: some 8 columns a thread, and no more warps than a program can have."""
    wide: int = triton.next_power_of_2(columns)
    return min(max(wide // 256, 1), 32)


def embed(tokens: Tensor, offsets: Tensor, table: Tensor, floor: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """The sum of the table's rows at tokens + offsets [n, streams], float32 [n, dim], and its norm, `kind`."""
    n, streams = tokens.shape
    dim = table.shape[1]
    x = tokens.new_empty(n, dim, dtype=torch.float32)
    normed = torch.empty_like(x, dtype=kind)
    _embed[(n,)](tokens, offsets, table, floor, x, normed, STREAMS=streams, DIM=dim,
                 DIM_UP=triton.next_power_of_2(dim), num_warps=_warps(dim))
    return x, normed


def add_norm(x: Tensor, update: Tensor, floor: Tensor | None, kind: torch.dtype, at: Tensor | None = None
             ) -> tuple[Tensor, Tensor]:
    """x [n, dim] + update [n, dim], float32, and its norm, `kind`; without a `floor` that is the sum itself.

    With `at` int64 [n] the update is a table, and these are its rows to add.
    """
    n, dim = x.shape
    total = x.new_empty(n, dim, dtype=torch.float32)
    normed = torch.empty_like(total, dtype=kind)
    _add_norm[(n,)](x, x.stride(0), update, total if at is None else at, total if floor is None else floor, total,
                    normed, AT=at is not None, NORM=floor is not None, DIM=dim, DIM_UP=triton.next_power_of_2(dim),
                    num_warps=_warps(dim))
    return total, normed


def gate(both: Tensor, kind: torch.dtype) -> Tensor:
    """silu(a) * b of the two halves [n, 2 * dim], `kind` [n, dim]."""
    n, dim = both.shape[0], both.shape[1] // 2
    answer = both.new_empty(n, dim, dtype=kind)
    block = 1024
    _gate[(n, triton.cdiv(dim, block))](both, answer, dim, BLOCK=block, num_warps=4)
    return answer


def depth_attend(heads: Tensor, past: Tensor, position: int, kind: torch.dtype) -> Tensor:
    """Attention of the depth transformer at one position: [n, heads * head_dim], `kind`.

    `heads` [n, kinds * heads * head_dim] are queries, keys and values, or at position 0 keys and values alone. `past`
    [2, n * heads, positions, head_dim] holds those of earlier positions; ours are added.
    """
    n = len(heads)
    _, rows, positions, dim = past.shape
    answer = heads.new_empty(n, rows // n * dim, dtype=kind)
    _depth_attend[(n, rows // n)](
        heads, past, answer, position, min(position, 1), POSITIONS=positions,
        POSITIONS_UP=triton.next_power_of_2(positions), DIM=dim, DIM_UP=triton.next_power_of_2(dim), num_warps=1)
    return answer


def draw(logits: Tensor, table: Tensor, seed: Tensor, positions: Tensor, temperature: Tensor, top_k: Tensor,
         stream: int) -> Tensor:
    """Tokens int64 [n, 1] of one stream from its logits [n, entries], seed and positions [n], temperature and top_k
    [n, 1]: those of `sampler.window_starts`, `noise` and `draw_by_threshold`.
    """
    n, entries = logits.shape
    token = positions.new_empty(n, 1)
    _draw[(n,)](logits, logits.stride(0), table, seed, positions, temperature, temperature.stride(0), top_k,
                top_k.stride(0), token, stream, ENTRIES=entries, ENTRIES_UP=triton.next_power_of_2(entries),
                GAMMA=_GAMMA, MIX_1=_MIX_1, MIX_2=_MIX_2, WINDOWS=WINDOWS, num_warps=_warps(entries))
    return token


@triton.jit
def _normed(x, floor, DIM: tl.constexpr):
    """See `layers.Norm`: 0 where x is."""
    edge = tl.load(floor)
    return x / tl.sqrt(tl.sum(x * x, 0) + edge * edge)


@triton.jit
def _embed(tokens, offsets, table, floor, x, normed, STREAMS: tl.constexpr, DIM: tl.constexpr, DIM_UP: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM_UP)
    within = column < DIM
    total = tl.zeros([DIM_UP], tl.float32)
    for stream in range(STREAMS):
        entry = tl.load(tokens + row * STREAMS + stream) + tl.load(offsets + stream)
        total += tl.load(table + entry * DIM + column, mask=within, other=0.0).to(tl.float32)
    tl.store(x + row * DIM + column, total, mask=within)
    tl.store(normed + row * DIM + column, _normed(total, floor, DIM).to(normed.dtype.element_ty), mask=within)


@triton.jit
def _add_norm(x, stride, update, at, floor, total, normed, AT: tl.constexpr, NORM: tl.constexpr, DIM: tl.constexpr,
              DIM_UP: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM_UP)
    within = column < DIM
    entry = row
    if AT:
        entry = tl.load(at + row)
    added = tl.load(x + row * stride + column, mask=within, other=0.0).to(tl.float32)
    added += tl.load(update + entry * DIM + column, mask=within, other=0.0).to(tl.float32)
    tl.store(total + row * DIM + column, added, mask=within)
    if NORM:
        added = _normed(added, floor, DIM)
    tl.store(normed + row * DIM + column, added.to(normed.dtype.element_ty), mask=within)


@triton.jit
def _gate(both, answer, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = column < dim
    opening = tl.load(both + row * 2 * dim + column, mask=within, other=0.0).to(tl.float32)
    value = tl.load(both + row * 2 * dim + dim + column, mask=within, other=0.0).to(tl.float32)
    gated = opening / (1.0 + tl.exp(-opening)) * value
    tl.store(answer + row * dim + column, gated.to(answer.dtype.element_ty), mask=within)


# Positions and streams are arguments like any other: a kernel for each would take seconds to compile at every start.
@triton.jit(do_not_specialize=["position", "later"])
def _depth_attend(heads, past, answer, position, later, POSITIONS: tl.constexpr, POSITIONS_UP: tl.constexpr,
                  DIM: tl.constexpr, DIM_UP: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    all_heads = tl.num_programs(1)
    column = tl.arange(0, DIM_UP)
    within = column < DIM
    # At position 0 there are no queries, and `later` is 0: keys stand in for them, and attend to themselves alone.
    kinds = heads + row * (2 + later) * all_heads * DIM + head * DIM + column
    query = tl.load(kinds, mask=within, other=0.0).to(tl.float32)
    new_key = tl.load(kinds + later * all_heads * DIM, mask=within, other=0.0).to(tl.float32)
    new_value = tl.load(kinds + (1 + later) * all_heads * DIM, mask=within, other=0.0).to(tl.float32)
    keys = past + (row * all_heads + head) * POSITIONS * DIM
    values = keys + tl.num_programs(0).to(tl.int64) * all_heads * POSITIONS * DIM
    tl.store(keys + position * DIM + column, new_key, mask=within)
    tl.store(values + position * DIM + column, new_value, mask=within)
    at = tl.arange(0, POSITIONS_UP)
    places = at[:, None] * DIM + column[None, :]
    held = (at < position)[:, None] & within[None, :]
    ours = (at == position)[:, None]
    key = tl.where(ours, new_key[None, :], tl.load(keys + places, mask=held, other=0.0))
    value = tl.where(ours, new_value[None, :], tl.load(values + places, mask=held, other=0.0))
    scores = tl.where(at <= position, tl.sum(query[None, :] * key, 1), float("-inf"))
    chances = tl.exp(scores - tl.max(scores, 0))
    attended = tl.sum(chances[:, None] * value, 0) / tl.sum(chances, 0)
    tl.store(answer + (row * all_heads + head) * DIM + column, attended.to(answer.dtype.element_ty), mask=within)


@triton.jit
def _mix(key, MIX_1: tl.constexpr, MIX_2: tl.constexpr):
    """See `sampler.mix`."""
    key = (key ^ ((key >> 30) & 0x3FFFFFFFF)) * MIX_1
    key = (key ^ ((key >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return key ^ ((key >> 31) & 0x1FFFFFFFF)


@triton.jit(do_not_specialize=["stream"])
def _draw(logits, logits_stride, table, seeds, positions, temperatures, temperature_stride, top_ks, top_k_stride, token,
          stream, ENTRIES: tl.constexpr, ENTRIES_UP: tl.constexpr, GAMMA: tl.constexpr, MIX_1: tl.constexpr,
          MIX_2: tl.constexpr, WINDOWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    entry = tl.arange(0, ENTRIES_UP)
    within = entry < ENTRIES
    key = _mix(tl.load(seeds + row) + GAMMA, MIX_1, MIX_2) + tl.load(positions + row) * GAMMA
    key = _mix(_mix(key, MIX_1, MIX_2) + stream.to(tl.int64) * GAMMA, MIX_1, MIX_2)
    noise = tl.maximum(tl.load(table + (key & (WINDOWS - 1)) + entry, mask=within, other=0.0),
                       tl.load(table + ((key >> 32) & (WINDOWS - 1)) + entry, mask=within, other=0.0))
    logit = tl.load(logits + row * logits_stride + entry, mask=within, other=float("-inf")).to(tl.float32)
    score = logit + tl.load(temperatures + row * temperature_stride) * noise
    top_k = tl.load(top_ks + row * top_k_stride)
    # By rejection, as a CPU does it: the winner of all is nearly always one of the top-k. If it is not, no entry with a
    # smaller logit is either.
    winner = tl.argmax(score, 0)
    reached = tl.sum(tl.where(entry == winner, logit, 0.0), 0)
    while tl.sum((logit > reached).to(tl.int32), 0) >= top_k:
        score = tl.where(logit <= reached, float("-inf"), score)
        winner = tl.argmax(score, 0)
        reached = tl.sum(tl.where(entry == winner, logit, 0.0), 0)
    tl.store(token + row, winner.to(tl.int64))
