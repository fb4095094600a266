"""Attention of new positions over a ring of past ones, for rows that are all at different positions.

All of them first write the new keys and values to the ring, slot `position % context`, and then attend over what
is filled. A full ring holds exactly the last `context` positions, so no mask is needed for the context, and the
order of keys does not matter since rotary positions are already in them. Queries come scaled by 1/sqrt(head_dim).

A ring of int8 keeps each key and value as head_dim steps of its own scale, and eight times the scale's logarithm to
base 2 as one more int8 after them: `kept` packs them, `recalled` unpacks them.

Shapes: heads [n, query_heads + 2 * kv_heads, head_dim] (queries, keys, values), ring [2, slots, kv_heads, context,
width] with width head_dim, or head_dim + 1 if int8, rows and positions [n], places [n * 2 * kv_heads]; the answer is
[n, query_heads * head_dim].
"""

import torch
from torch import Tensor
from torch.nn import functional


def places(ring: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """Where in a ring, seen as [-1, width], the new keys and values of the rows go; the same in every layer."""
    kinds, slots, kv_heads, context, _ = ring.shape
    heads = torch.arange(kinds * kv_heads, device=ring.device).view(kinds, kv_heads)
    blocks = heads + (torch.arange(kinds, device=ring.device)[:, None] * (slots - 1) + rows[:, None, None]) * kv_heads
    return (blocks * context + (positions % context)[:, None, None]).flatten()


@torch.jit.script
def kept(new: Tensor, ring: Tensor) -> Tensor:
    """Keys or values float32 [m, head_dim], as the ring keeps them [m, width]."""
    if ring.dtype != torch.int8:
        return new.to(ring.dtype)
    # Rounded up, so that the largest element is at most 127 steps.
    exponent = (8 * torch.log2(new.abs().amax(dim=1, keepdim=True) / 127)).ceil().clamp(-128, 127)
    return torch.cat(((new / torch.exp2(exponent / 8)).round().clamp(-127, 127), exponent), dim=1).to(torch.int8)


@torch.jit.script
def recalled(part: Tensor, dim: int) -> Tensor:
    """A part of a ring [..., width] as keys and values [..., dim]: bfloat16 from bfloat16, otherwise float32."""
    if part.dtype != torch.int8:
        return part
    return part.narrow(-1, 0, dim).float() * torch.exp2(part.narrow(-1, dim, 1).float() / 8)


@torch.jit.script
def attend_filled(heads: Tensor, ring: Tensor, rows: Tensor, positions: Tensor, places: Tensor) -> Tensor:
    """Over no more than what is filled: the CPU's way.

    Rows that lie side by side in the ring are done in one go, the shorter ones under a mask, unless going one by one
    over exactly what each has filled is less work. Measured on one core, a row on its own costs about 13 us more,
    the time of 32 000 elements of its keys. Rows that have to be unpacked go one by one, to stay in the caches.
    """
    kv_heads = ring.size(2)
    context = ring.size(3)
    dim = heads.size(2)
    n = heads.size(0)
    groups = heads.view(n, -1, kv_heads, dim)
    query_groups = groups.size(1) - 2
    new = kept(groups.narrow(1, query_groups, 2).reshape(-1, dim), ring)
    ring.view(-1, new.size(1)).index_copy_(0, places, new)
    queries = heads.narrow(1, 0, query_groups * kv_heads)
    keys = ring.select(0, 0)
    values = ring.select(0, 1)
    row_list: list[int] = rows.tolist()
    filled: list[int] = (positions + 1).clamp(max=context).tolist()
    longest = max(filled)
    side_by_side = row_list[n - 1] - row_list[0] == n - 1  # rows come in ascending order
    if ring.dtype == torch.float32 and side_by_side and (n * longest - sum(filled)) * kv_heads * dim <= n * 32000:
        keys = keys.narrow(0, row_list[0], n).flatten(0, 1).narrow(1, 0, longest)
        values = values.narrow(0, row_list[0], n).flatten(0, 1).narrow(1, 0, longest)
        scores = torch.bmm(queries.reshape(n * kv_heads, query_groups, dim), keys.transpose(1, 2))
        if min(filled) < longest:
            empty = torch.arange(longest) > positions.view(n, 1, 1)
            scores = scores.view(n, -1, longest).masked_fill(empty, float("-inf")).view_as(scores)
        return torch.bmm(torch.softmax(scores, dim=-1), values).view(n, -1)
    attended: list[Tensor] = []
    for i in range(n):
        row_queries = queries.select(0, i).view(kv_heads, query_groups, dim)
        row_keys = recalled(keys.select(0, row_list[i]).narrow(1, 0, filled[i]), dim).float()
        row_values = recalled(values.select(0, row_list[i]).narrow(1, 0, filled[i]), dim).float()
        scores = torch.bmm(row_queries, row_keys.transpose(1, 2))
        attended.append(torch.bmm(torch.softmax(scores, dim=-1), row_values).view(-1))
    return torch.stack(attended)


def attend_prefix(heads: Tensor, ring: Tensor, positions: Tensor, places: Tensor, filled: int) -> Tensor:
    """Rows 0..n over the ring's first `filled` slots: shapes fit for a CUDA graph."""
    n, _, dim = heads.shape
    kv_heads = ring.shape[2]
    queries, new = heads[:, : -2 * kv_heads], heads[:, -2 * kv_heads :]
    packed = kept(new.reshape(-1, dim), ring)
    ring.view(-1, packed.shape[1]).index_copy_(0, places, packed)
    seen = torch.arange(filled, device=ring.device) <= positions[:, None, None, None]
    keys, values = recalled(ring[:, :n, :, :filled], dim)
    attended = functional.scaled_dot_product_attention(
        queries.reshape(n, kv_heads, -1, dim).to(keys.dtype), keys, values, attn_mask=seen, scale=1.0)
    return attended.reshape(n, -1).to(heads.dtype)


def attend_history(heads: Tensor, ring: Tensor, row: int, bias: Tensor, places: Tensor) -> Tensor:
    """Many positions of one row over the ring's first slots.

    `bias` [n, filled] is 0 where a position may look at a slot and -inf where it may not.
    """
    n, _, dim = heads.shape
    kv_heads = ring.shape[2]
    queries, new = heads[:, : -2 * kv_heads], heads[:, -2 * kv_heads :]
    packed = kept(new.reshape(-1, dim), ring)
    ring.view(-1, packed.shape[1]).index_copy_(0, places, packed)
    history = recalled(ring[:, row, :, None, : bias.shape[1]], dim)
    grouped = queries.view(n, kv_heads, -1, dim).permute(1, 2, 0, 3).to(history.dtype)
    keys, values = history.expand(-1, -1, grouped.shape[1], -1, -1)
    attended = functional.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=bias.to(history.dtype), scale=1.0)
    return attended.permute(2, 0, 1, 3).reshape(n, -1).to(heads.dtype)
