"""Attention of one new position over a ring of past ones, for rows that are all at different positions.

Both functions first write the new key and value to the ring, slot `position % context`, and then attend over what
is filled. A full ring holds exactly the last `context` positions, so no mask is needed for the context, and the
order of keys does not matter since rotary positions are already in them. Queries come scaled by 1/sqrt(head_dim).
"""

import torch
from torch import Tensor
from torch.nn import functional


@torch.jit.script
def attend_each(heads: Tensor, ring: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """Row by row, over exactly the filled part of each: the CPU's way. No copies, no padding, no mask, and a row's
    result does not depend on its company.

    heads [n, query_heads + 2 * kv_heads, head_dim], ring [slots, 2, kv_heads, context, head_dim], rows and
    positions [n] -> [n, query_heads * head_dim]
    """
    kv_heads = ring.size(2)
    context = ring.size(3)
    dim = ring.size(4)
    row_list: list[int] = rows.tolist()
    position_list: list[int] = positions.tolist()
    attended: list[Tensor] = []
    for i in range(len(row_list)):
        position = position_list[i]
        row = ring.select(0, row_list[i])
        head = heads.select(0, i)
        queries = head.narrow(0, 0, head.size(0) - 2 * kv_heads)
        row.select(2, position % context).copy_(head.narrow(0, queries.size(0), 2 * kv_heads).view(2, kv_heads, dim))
        past = row.narrow(2, 0, min(position + 1, context))
        scores = torch.bmm(queries.view(kv_heads, -1, dim), past.select(0, 0).transpose(1, 2))
        attended.append(torch.bmm(torch.softmax(scores, dim=-1), past.select(0, 1)).view(1, -1))
    return torch.cat(attended)


def attend_together(heads: Tensor, ring: Tensor, positions: Tensor, filled: int) -> Tensor:
    """All rows 0..n of the ring at once, over its first `filled` slots under a mask: shapes fit for a CUDA graph.

    heads [n, query_heads + 2 * kv_heads, head_dim], ring [slots, 2, kv_heads, context, head_dim], positions [n]
    -> [n, query_heads * head_dim]
    """
    n, _, dim = heads.shape
    kv_heads, context = ring.shape[2:4]
    queries, new = heads[:, : -2 * kv_heads], heads[:, -2 * kv_heads :]
    rows = torch.arange(n, device=ring.device)
    ring[rows, :, :, positions % context] = new.reshape(n, 2, kv_heads, dim).to(ring.dtype)
    seen = torch.arange(filled, device=ring.device) <= positions[:, None, None, None]
    attended = functional.scaled_dot_product_attention(
        queries.reshape(n, kv_heads, -1, dim).to(ring.dtype), ring[:n, 0, :, :filled], ring[:n, 1, :, :filled],
        attn_mask=seen, scale=1.0)
    return attended.reshape(n, -1).to(heads.dtype)
