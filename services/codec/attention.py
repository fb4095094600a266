"""Mimi's transformers over ring key-value caches, one ring a row, for any choice of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import torch
from moshi.modules.transformer import ProjectedTransformer, StreamingTransformerLayer
from torch import Tensor, nn
from torch.nn import functional

from services.codec.packed import Linear, static_shape


@dataclass
class Place:
    """Where the rows of one step stand in time; the same for every layer."""

    rows: Tensor      # int64 [n]
    entries: Tensor   # int64 [n * steps * 2 * heads], where this step's keys and values go in a ring of all rows
    rotation: Tensor  # complex64 [n, steps, 1, 1, head dimension / 2], rotary embedding of this step's positions
    bias: Tensor      # float32 [n, 1, steps, context], 0 where a query may look and -inf where it may not


class Transformer(nn.Module):
    """A stack of layers on [n, steps, channels]; positions advance by `steps` each call."""

    frequencies: Tensor
    positions: Tensor

    def __init__(self, module: ProjectedTransformer, rows: int, steps: int) -> None:
        super().__init__()
        inner = module.transformer
        attention = inner.layers[0].self_attn
        if inner.positional_embedding != "rope" or not attention.causal or attention.context is None:
            raise ValueError("Mimi's transformers must be causal, with rotary positions and a bounded context")
        device = next(module.parameters()).device
        self.steps, self.context = steps, int(attention.context)
        self.heads = int(attention.num_heads)
        half = attention.embed_dim // self.heads // 2
        # As moshi.modules.rope.apply_rope computes it.
        dimensions = torch.arange(half, device=device, dtype=torch.float32)
        self.register_buffer("frequencies", torch.exp(dimensions * (-math.log(inner.max_period) / half)))
        self.register_buffer("positions", torch.zeros(rows, dtype=torch.int64, device=device))
        self.before = _projection(module.input_proj)
        self.after = _projection(module.output_projs[0])
        self.layers = nn.ModuleList([Layer(layer, rows, self.context) for layer in inner.layers])

    @property
    def frames(self) -> Fraction:
        """How far back a step hears: each layer makes the one above hear its own context further back."""
        return Fraction(len(self.layers) * (self.context - 1), self.steps)

    def clear(self, row: int) -> None:
        """The row's next call is the first of its tenant; its ring is cleared, since masked NaN would still be NaN."""
        self.positions[row] = 0
        for layer in self.layers:
            cast(Layer, layer).ring[row] = 0.0

    def forward(self, rows: Tensor, x: Tensor) -> Tensor:
        """x [n, steps, channels] of `rows`, int64 [n]."""
        if self.before is not None:
            x = self.before(x)
        place = self._place(rows)
        for layer in self.layers:
            x = layer(place, x)
        self.positions.index_add_(0, rows, torch.full_like(rows, self.steps))
        return x if self.after is None else cast(Tensor, self.after(x))

    def _place(self, rows: Tensor) -> Place:
        def count(end: int) -> Tensor:
            return torch.arange(end, device=rows.device)

        positions = self.positions.index_select(0, rows)[:, None] + count(self.steps)
        # Ring entry (row, key or value, head, position) of [n, steps, key or value, head].
        entries = (rows[:, None, None, None] * 2 + count(2)[:, None]) * self.heads + count(self.heads)
        entries = (entries * self.context + (positions % self.context)[:, :, None, None]).flatten()
        angle = positions.float()[..., None] * self.frequencies
        rotation = torch.complex(angle.cos(), angle.sin())[:, :, None, None]
        # The position held by each ring entry once this step is written: the newest one that falls on the entry.
        newest = positions[:, -1:]
        held = newest - (newest - count(self.context)) % self.context
        seen = (held >= 0)[:, None] & (held[:, None] <= positions[..., None])
        bias = torch.where(seen, 0.0, -math.inf)[:, None]
        return Place(rows, entries, rotation, bias)


class Layer(nn.Module):
    """Attention and feed-forward, each normalised before and added to the stream scaled."""

    ring: Tensor

    def __init__(self, layer: StreamingTransformerLayer, rows: int, context: int) -> None:
        super().__init__()
        attention = layer.self_attn
        if layer.linear1 is None or attention.kv_repeat != 1 or layer.cross_attention is not None:
            raise ValueError("Mimi's transformer layers must have plain feed-forward and self-attention only")
        self.heads = attention.num_heads
        self.size = attention.embed_dim // self.heads
        self.norm_1, self.norm_2 = layer.norm1, layer.norm2
        self.inputs = Linear(_scaled_queries(attention.in_projs[0].weight, self.size))
        # The layer scales fold into the weights before them.
        self.output = Linear(_scale(layer.layer_scale_1, attention.out_projs[0].weight))
        self.feed_in = Linear(layer.linear1.weight, gelu=True)
        self.feed_out = Linear(_scale(layer.layer_scale_2, layer.linear2.weight))
        device = layer.linear1.weight.device
        self.register_buffer("ring", torch.zeros(rows, 2, self.heads, context, self.size, device=device))

    def forward(self, place: Place, x: Tensor) -> Tensor:
        """[n, steps, channels] to the same."""
        n, steps, width = static_shape(x)
        projected = self.inputs(self.norm_1(x)).view(n, steps, 3, self.heads, self.size)
        rotated = torch.view_as_complex(projected.narrow(2, 0, 2).view(n, steps, 2, self.heads, self.size // 2, 2))
        rotated.mul_(place.rotation)
        self.ring.view(-1, self.size).index_copy_(0, place.entries, projected.narrow(2, 1, 2).reshape(-1, self.size))
        queries = projected.select(2, 0).transpose(1, 2)
        attend = attend_row_by_row if self.ring.device.type == "cpu" else attend_gathered
        heard = attend(queries, self.ring, place.rows, place.bias)
        x = self.output.add_to(x, heard.transpose(1, 2).reshape(n, steps, width))
        return self.feed_out.add_to(x, self.feed_in(self.norm_2(x)))


def attend_gathered(queries: Tensor, ring: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """Attention of queries [n, heads, steps, size] over their rows of ring [all rows, 2, heads, context, size]."""
    rings = ring.index_select(0, rows)
    return functional.scaled_dot_product_attention(queries, rings[:, 0], rings[:, 1], bias, scale=1.0)


def _attend_row_by_row(queries: Tensor, ring: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """The same, reading the rings where they lie.

    On a CPU a full-size layer's rings are too large to copy first: 0.7 instead of 1.4 to 2.1 ms at 8 rows.
    """
    n, heads, steps, size = queries.shape
    scores = torch.empty([n, heads, steps, ring.shape[3]])
    for index in range(n):
        torch.bmm(queries[index], ring[int(rows[index]), 0].transpose(1, 2), out=scores[index])
    weights = torch.softmax(scores + bias, -1)
    heard = torch.empty([n, heads, steps, size])
    for index in range(n):
        torch.bmm(weights[index], ring[int(rows[index]), 1], out=heard[index])
    return heard


# Scripted, so that a traced step keeps the loop and reads the rows it is given instead of those it was traced with.
attend_row_by_row = torch.jit.script(_attend_row_by_row)


def _projection(module: nn.Module | None) -> Linear | None:
    return Linear(module.weight) if isinstance(module, nn.Linear) else None


def _scaled_queries(weight: Tensor, size: int) -> Tensor:
    """The attention's scale, folded into the third of the input projection that makes queries."""
    queries, rest = weight[:len(weight) // 3], weight[len(weight) // 3:]
    return torch.cat([queries / math.sqrt(size), rest])


def _scale(layer_scale: Any, weight: Tensor) -> Tensor:
    return weight if isinstance(layer_scale, nn.Identity) else layer_scale.scale[:, None] * weight
