"""Attention of one step on a GPU, in Triton: `attention.attend_filled` for rows 0..n, without a look from the host.

A program does one row's one key-value head and one part of the row's filled slots (flash decoding: the parts of a long
history run side by side, and a second kernel puts them together). How much is filled is read on the device, so one
graph serves every length, and a short call reads no more than it has. Keys and values of 8 bits are unpacked in
registers. The program whose part holds the new position's slot also writes it, and nobody reads it from memory.

With a rotation, queries and keys come as their product made them and are turned on the way in (rotary positions).

A row whose position is negative takes no part: nothing of its ring is read or written, and its answer is 0.

See `attention` for the shapes and for how a ring keeps keys and values. Imports Triton, which a CPU's torch does not
bring. With TRITON_INTERPRET=1 in the environment when this file is imported, it runs on a CPU, slowly: for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32
"""Slots at a time, in the registers of 128 threads; with 64, ptxas for an H100 runs out of them. Unmeasured."""
PROGRAMS = 528
"""About as many as run at once on an H100 (132 multiprocessors, 4 each): with fewer rows a history is split. More than
a smaller GPU runs at once does no harm. Unmeasured."""
MOST_PARTS = 16


def parts_for(rows: int, kv_heads: int, context: int) -> int:
    """Into how many parts a full history is split: a power of two, and no part shorter than four blocks."""
    wanted = max(PROGRAMS // (rows * kv_heads), 1)
    longest: int = triton.next_power_of_2(context) // (4 * BLOCK)
    return max(1, min(1 << (wanted.bit_length() - 1), MOST_PARTS, longest))


def attend_decode(heads: Tensor, ring: Tensor, positions: Tensor, rotation: Tensor | None = None) -> Tensor:
    """Rows 0..n, each over exactly what it has filled, after its new key and value were put into the ring.

    `rotation` float32 [n, head_dim / 2, 2] is the cosine and sine that each (real, imaginary) pair of queries and keys
    is turned by.
    """
    n, all_heads, dim = heads.shape
    _, slots, kv_heads, context, width = ring.shape
    groups = all_heads // kv_heads - 2
    parts = parts_for(n, kv_heads, context)
    answer = heads.new_empty(n, kv_heads * groups * dim)
    # A history in one part needs nothing put together.
    sums = answer if parts == 1 else answer.new_empty(n, kv_heads, groups, parts, dim, dtype=torch.float32)
    marks = heads.new_empty(2, n, kv_heads, groups, parts, dtype=torch.float32)
    _attend_part[(n, kv_heads, parts)](
        heads, ring, positions, heads if rotation is None else rotation, sums, marks, slots, kv_heads, context,
        TURN=rotation is not None, PARTS=parts, GROUPS=groups, GROUPS_UP=triton.next_power_of_2(groups), DIM=dim,
        DIM_UP=triton.next_power_of_2(dim), WIDTH=width, INT8=ring.dtype == torch.int8, BLOCK=BLOCK, num_warps=4)
    if parts > 1:
        _put_together[(n, kv_heads * groups)](
            sums, marks, answer, n * kv_heads * groups * parts, PARTS=parts, DIM=dim,
            DIM_UP=triton.next_power_of_2(dim), num_warps=1)
    return answer


@triton.jit
def _kept(new, INT8: tl.constexpr):
    """A key or value float32 [DIM_UP], as int8 steps and eight times the binary logarithm of their scale; see
    `attention.kept`."""
    exponent = tl.ceil(8 * tl.log2(tl.max(tl.abs(new), 0) / 127))
    exponent = tl.minimum(tl.maximum(exponent, -128), 127)
    steps = new / tl.exp2(exponent / 8)
    # To the nearest, halves to the even one, as torch.round: float32 has no digits after the point at this size.
    steps = (steps + 12582912.0) - 12582912.0
    return tl.minimum(tl.maximum(steps, -127), 127), exponent


@triton.jit
def _as_bfloat16(new):
    """Float32 rounded to the next bfloat16, halves to the even one, in bits: Triton's interpreter cuts digits off."""
    bits = new.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _turned(at, column, cosine, sine, mask):
    """Queries or keys at a pointer to their first columns, float32, each pair turned: partners lie side by side."""
    one = tl.load(at + column, mask=mask, other=0.0).to(tl.float32)
    partner = tl.load(at + (column ^ 1), mask=mask, other=0.0).to(tl.float32)
    return one * cosine + partner * sine


@triton.jit
def _attend_part(heads, ring, positions, rotation, sums, marks, slots, kv_heads, context, TURN: tl.constexpr,
                 PARTS: tl.constexpr, GROUPS: tl.constexpr, GROUPS_UP: tl.constexpr, DIM: tl.constexpr,
                 DIM_UP: tl.constexpr, WIDTH: tl.constexpr, INT8: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    position = tl.load(positions + row)
    group = tl.arange(0, GROUPS_UP)
    column = tl.arange(0, DIM_UP)
    within = column < DIM
    filled = tl.minimum(position + 1, context)
    slot = position % context  # of a row that takes part
    # Whole blocks, and as many in every part.
    length = (filled + PARTS * BLOCK - 1) // (PARTS * BLOCK) * BLOCK
    begin = part * length
    end = tl.minimum(begin + length, filled)

    row_heads = heads + row * (GROUPS + 2) * kv_heads * DIM
    cosine = tl.full([DIM_UP], 1.0, tl.float32)
    sine = tl.zeros([DIM_UP], tl.float32)
    if TURN:
        pair = rotation + row * DIM + column // 2 * 2
        cosine = tl.load(pair, mask=within, other=0.0)
        sine = tl.load(pair + 1, mask=within, other=0.0) * tl.where(column % 2 == 0, -1.0, 1.0)
    queries = _turned(row_heads + (kv_head * GROUPS + group[:, None]) * DIM, column[None, :], cosine[None, :],
                      sine[None, :], (group[:, None] < GROUPS) & within[None, :])
    new_key = _turned(row_heads + (GROUPS * kv_heads + kv_head) * DIM, column, cosine, sine, within)
    new_value = tl.load(row_heads + ((GROUPS + 1) * kv_heads + kv_head) * DIM + column, mask=within, other=0.0)
    new_value = new_value.to(tl.float32)
    key_ring = ring + (row * kv_heads + kv_head) * context * WIDTH
    value_ring = ring + ((slots + row) * kv_heads + kv_head) * context * WIDTH

    # The new ones as they will be remembered, and into the ring by the one program that would read them from there.
    ours = (slot >= begin) & (slot < end)
    if INT8:
        key_steps, key_exponent = _kept(new_key, INT8)
        value_steps, value_exponent = _kept(new_value, INT8)
        new_key = key_steps * tl.exp2(key_exponent / 8)
        new_value = value_steps * tl.exp2(value_exponent / 8)
        tl.store(key_ring + slot * WIDTH + column, key_steps.to(tl.int8), mask=within & ours)
        tl.store(value_ring + slot * WIDTH + column, value_steps.to(tl.int8), mask=within & ours)
        tl.store(key_ring + slot * WIDTH + DIM, key_exponent.to(tl.int8), mask=ours)
        tl.store(value_ring + slot * WIDTH + DIM, value_exponent.to(tl.int8), mask=ours)
    else:
        if ring.dtype.element_ty == tl.bfloat16:
            new_key = _as_bfloat16(new_key)
            new_value = _as_bfloat16(new_value)
        tl.store(key_ring + slot * WIDTH + column, new_key.to(ring.dtype.element_ty), mask=within & ours)
        tl.store(value_ring + slot * WIDTH + column, new_value.to(ring.dtype.element_ty), mask=within & ours)

    largest = tl.full([GROUPS_UP], float("-inf"), tl.float32)
    weight = tl.zeros([GROUPS_UP], tl.float32)
    summed = tl.zeros([GROUPS_UP, DIM_UP], tl.float32)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        # Not the new one: whether its store is done here would be another program's guess.
        stored = (at < end) & (at != slot)
        held = stored[:, None] & within[None, :]
        keys = tl.load(key_ring + at[:, None] * WIDTH + column[None, :], mask=held, other=0).to(tl.float32)
        values = tl.load(value_ring + at[:, None] * WIDTH + column[None, :], mask=held, other=0).to(tl.float32)
        if INT8:
            keys *= tl.exp2(tl.load(key_ring + at * WIDTH + DIM, mask=stored, other=0).to(tl.float32) / 8)[:, None]
            values *= tl.exp2(tl.load(value_ring + at * WIDTH + DIM, mask=stored, other=0).to(tl.float32) / 8)[:, None]
        is_new = (at == slot)[:, None]
        keys = tl.where(is_new, new_key[None, :], keys)
        values = tl.where(is_new, new_value[None, :], values)
        # No tl.dot: a step has few queries a head, and is bound by what it reads.
        scores = tl.sum(queries[:, None, :] * keys[None, :, :], 2)
        scores = tl.where((at < end)[None, :], scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp(largest - higher)
        chances = tl.exp(scores - higher[:, None])
        weight = weight * shrink + tl.sum(chances, 1)
        summed = summed * shrink[:, None] + tl.sum(chances[:, :, None] * values[None, :, :], 1)
        largest = higher

    # sums [n, kv_heads, GROUPS, PARTS, DIM]; marks [2, n, kv_heads, GROUPS, PARTS]: the largest score and the weight
    index = ((row * kv_heads + kv_head) * GROUPS + group) * PARTS + part
    there = group < GROUPS
    if PARTS == 1:  # below 2^-126, Triton would take a constant for a double
        summed = (summed / tl.maximum(weight, 1.0e-37)[:, None]).to(sums.dtype.element_ty)
    else:
        tl.store(marks + index, largest, mask=there)
        tl.store(marks + tl.num_programs(0).to(tl.int64) * kv_heads * GROUPS * PARTS + index, weight, mask=there)
    tl.store(sums + index[:, None] * DIM + column[None, :], summed, mask=there[:, None] & within[None, :])


@triton.jit
def _put_together(sums, marks, answer, entries, PARTS: tl.constexpr, DIM: tl.constexpr, DIM_UP: tl.constexpr):
    head = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    part = tl.arange(0, PARTS)
    column = tl.arange(0, DIM_UP)
    largest = tl.load(marks + head * PARTS + part)
    weight = tl.load(marks + entries + head * PARTS + part)
    # Where nothing is filled all are -inf, and -inf less itself is no number.
    share = tl.exp(largest - tl.maximum(tl.max(largest, 0), -3.0e38))
    total = tl.maximum(tl.sum(weight * share, 0), 1.0e-37)
    within = column < DIM
    parts = tl.load(sums + (head * PARTS + part[:, None]) * DIM + column[None, :], mask=within[None, :], other=0.0)
    attended = tl.sum(parts * share[:, None], 0) / total
    tl.store(answer + head * DIM + column, attended.to(answer.dtype.element_ty), mask=within)
