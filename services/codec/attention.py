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

    def attend(self, ring: Tensor, queries: Tensor, new: Tensor) -> Tensor:
        """What queries [n, heads, steps, size] find in ring [all rows, 2, heads, context, size], once the keys and
        values `new` [n, steps, 2, heads, size] are in it: [n, heads, steps, size].
        """
        ring.view(-1, ring.shape[-1]).index_copy_(0, self.entries, new.reshape(-1, ring.shape[-1]))
        attend = attend_row_by_row if ring.device.type == "cpu" else attend_gathered
        heard: Tensor = attend(queries, ring, self.rows, self.bias)
        return heard


@dataclass
class Stretch:
    """Where many steps of one row stand in time: so many that a ring would lose keys which the first still look at."""

    row: int
    kept: Tensor      # int64 [at most context], where the ring keeps the last of the new keys and values
    rotation: Tensor  # as in Place, of one row
    bias: Tensor      # float32 [1, 1, steps, context + steps], of the ring as it was and the new keys after it

    def attend(self, ring: Tensor, queries: Tensor, new: Tensor) -> Tensor:
        """As in Place."""
        mine, latest = ring[self.row], new[0].permute(1, 2, 0, 3)
        keys, values = torch.cat([mine, latest], 2)[:, None].unbind()
        mine.index_copy_(2, self.kept, latest[:, :, latest.shape[2] - len(self.kept):])
        return functional.scaled_dot_product_attention(queries, keys, values, self.bias, scale=1.0)


class Transformer(nn.Module):
    """A stack of layers on [n, steps, channels]; positions advance by as many steps."""

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
        """x [n, steps, channels] of `rows`, int64 [n]: one frame of each."""
        x = self._through(self._place(rows), x)
        self.positions.index_add_(0, rows, torch.full_like(rows, self.steps))
        return x

    def advance(self, row: int, x: Tensor) -> Tensor:
        """x [1, steps, channels] of one row: any number of frames, at once."""
        x = self._through(self._stretch(row, x.shape[1]), x)
        self.positions[row] += x.shape[1]
        return x

    def _through(self, place: Place | Stretch, x: Tensor) -> Tensor:
        if self.before is not None:
            x = self.before(x)
        for layer in self.layers:
            x = layer(place, x)
        return x if self.after is None else cast(Tensor, self.after(x))

    def _rotation(self, positions: Tensor) -> Tensor:
        angle = positions.float()[..., None] * self.frequencies
        return torch.complex(angle.cos(), angle.sin())[:, :, None, None]

    def _stretch(self, row: int, steps: int) -> Stretch:
        slots = torch.arange(self.context, device=self.positions.device)
        first = self.positions[row]
        positions = first + torch.arange(steps, device=slots.device)
        # What the ring holds before: the newest position that falls on each of its entries.
        held = torch.cat([first - 1 - (first - 1 - slots) % self.context, positions])
        # A ring has a frame's keys before its first query looks, so all queries of a frame hear as far as its last one.
        newest = first + (positions - first) // self.steps * self.steps + self.steps - 1
        seen = (held >= 0) & (held <= positions[:, None]) & (held > newest[:, None] - self.context)
        bias = torch.where(seen, 0.0, -math.inf)[None, None]
        return Stretch(row, positions[-self.context:] % self.context, self._rotation(positions[None]), bias)

    def _place(self, rows: Tensor) -> Place:
        def count(end: int) -> Tensor:
            return torch.arange(end, device=rows.device)

        positions = self.positions.index_select(0, rows)[:, None] + count(self.steps)
        # Ring entry (row, key or value, head, position) of [n, steps, key or value, head].
        entries = (rows[:, None, None, None] * 2 + count(2)[:, None]) * self.heads + count(self.heads)
        entries = (entries * self.context + (positions % self.context)[:, :, None, None]).flatten()
        # The position held by each ring entry once this step is written: the newest one that falls on the entry.
        newest = positions[:, -1:]
        held = newest - (newest - count(self.context)) % self.context
        seen = (held >= 0)[:, None] & (held[:, None] <= positions[..., None])
        bias = torch.where(seen, 0.0, -math.inf)[:, None]
        return Place(rows, entries, self._rotation(positions), bias)


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

    def forward(self, place: Place | Stretch, x: Tensor) -> Tensor:
        """[n, steps, channels] to the same."""
        n, steps, width = static_shape(x)
        projected = self.inputs(self.norm_1(x)).view(n, steps, 3, self.heads, self.size)
        rotated = torch.view_as_complex(projected.narrow(2, 0, 2).view(n, steps, 2, self.heads, self.size // 2, 2))
        rotated.mul_(place.rotation)
        heard = place.attend(self.ring, projected.select(2, 0).transpose(1, 2), projected.narrow(2, 1, 2))
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
