"""Moshi's RQ-Transformer, one step of many rows.

The same function as `moshi.models.lm.LMModel` in streaming mode followed by a draw of every token (tests compare them),
arranged for steps of few rows, where the number of operator calls costs as much as the arithmetic:

- the embeddings of a step's 17 tokens are one lookup and sum;
- the text head and the inputs of the depth transformer's eight steps are one matrix product;
- queries and keys are rotated by one complex product;
- the depth transformer's first position attends to itself alone, so it needs no query and no softmax.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.lm import attention, sampler
from services.lm.layers import Attend, DepthLayer, Norm, TemporalLayer, Unsupported, table_of, weight_of
from services.lm.linear import Packing

Decode = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Heads, a layer's ring and positions of rows 0..n, to what was attended: see `decode_attention`."""


class Draws(NamedTuple):
    """How each of n rows draws: temperature float32 [n, 2] and top_k int64 [n, 2] (text, audio), seed int64 [n]."""

    temperature: Tensor
    top_k: Tensor
    seed: Tensor


class Bends(NamedTuple):
    """What is decided from outside about the tokens of n rows: see `directing` and `sampler.reshaped`."""

    forced: Tensor
    """Int64 [n, 1 + own_codebooks], negative where a token is drawn."""
    bonus: Tensor
    """Of padding, times the temperature, float32 [n, 1]."""
    penalty: Tensor
    """Float32 [n, 1]."""
    recent: Tensor
    """The text tokens that it applies to, int64 [n, MOST_PENALISED]; some may be the same."""


class Shapes(NamedTuple):
    """Sizes fixed beforehand, for where the host may not look at the data (a CUDA graph)."""

    filled: int
    """Slots of the ring that are attended to: beyond every row's position."""
    top_k: tuple[int, int]
    """Bounds of every row's top_k, text and audio."""


class Temporal(nn.Module):
    """The main transformer: what all streams said at this step, given what they said before."""

    offsets: Tensor
    table: Tensor
    frequencies: Tensor
    turns: Tensor
    one: Tensor

    def __init__(self, lm: Any, packing: Packing) -> None:
        super().__init__()
        tables = [table_of(embedding) for embedding in (lm.text_emb, *lm.emb)]
        starts = [0, *itertools.accumulate(len(table) for table in tables[:-1])]
        self.register_buffer("offsets", torch.tensor(starts, device=packing.device))
        self.register_buffer("table", packing.table(torch.cat(tables)))
        first = lm.transformer.layers[0].self_attn
        if lm.transformer.positional_embedding not in ("rope", "rope_concat"):
            raise Unsupported(f"positional_embedding must be rope, got {lm.transformer.positional_embedding}")
        dim = first.embed_dim // first.num_heads
        rotated = first.num_heads + first.num_heads // first.kv_repeat
        frequencies = torch.exp(torch.arange(dim // 2).float() * (-math.log(lm.transformer.max_period) * 2 / dim))
        # Values are turned by nothing, so that queries, keys and values can stay one tensor.
        self.register_buffer("frequencies", torch.stack((frequencies, 0 * frequencies)).to(packing.device))
        values = first.num_heads // first.kv_repeat
        self.register_buffer("turns", torch.tensor([0] * rotated + [1] * values, device=packing.device))
        self.register_buffer("one", torch.ones((), device=packing.device))
        self.layers = nn.ModuleList(TemporalLayer(layer, packing) for layer in lm.transformer.layers)

    def forward(self, tokens: Tensor, rings: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens [n, streams], rings [layers, 2, slots, kv_heads, context, width] -> [n, dim], not normed."""
        x = functional.embedding_bag(tokens + self.offsets, self.table, mode="sum").float()
        angle = positions[:, None, None].float() * self.frequencies
        rotation = torch.polar(self.one.expand_as(angle), angle).index_select(1, self.turns)
        for ring, layer in zip(rings.unbind(), self.layers, strict=True):
            x = layer(x, rotation, ring, attend)
        return x


class DepthStep(nn.Module):
    """The depth transformer at one codebook: the previous token in, the codebook's logits out."""

    table: Tensor

    def __init__(self, lm: Any, codebook: int, packing: Packing) -> None:
        super().__init__()
        embedding = lm.depformer_text_emb if codebook == 0 else lm.depformer_emb[codebook - 1]
        self.register_buffer("table", packing.table(table_of(embedding)))
        self.layers = nn.ModuleList(DepthLayer(layer, codebook, packing) for layer in lm.depformer.layers)
        norm, head = lm.depformer_norms[codebook], weight_of(lm.linears[codebook], packing)
        self.norm = None if isinstance(norm, nn.Identity) else Norm(norm, packing)
        self.head = packing.linear(head if self.norm is None else head * self.norm.fold)

    def forward(self, previous: Tensor, context: Tensor, past: Tensor) -> Tensor:
        """previous [n], context [n, dim], past [layers, 2, n * heads, codebooks, head_dim] -> [n, cardinality]."""
        x = context + self.table.index_select(0, previous)
        for layer, layer_past in zip(self.layers, past.unbind(), strict=True):
            x = layer(x, layer_past)
        logits: Tensor = self.head(x if self.norm is None else self.norm(x))
        return logits


class Network(nn.Module):
    """One step: every stream's token in, the next text token and own codes out."""

    table: Tensor
    streams: Tensor

    def __init__(self, lm: Any, packing: Packing) -> None:
        super().__init__()
        if lm.depformer is None:
            raise Unsupported("a model without depth transformer is not supported")
        if lm.fuser is not None or lm.condition_provider is not None:
            raise Unsupported("conditioned models are not supported")
        if lm.depformer.positional_embedding != "none":
            raise Unsupported(f"depformer_pos_emb must be none, got {lm.depformer.positional_embedding}")
        if lm.context is None:
            raise Unsupported("context must be a number of frames, got None")
        if not all(layer.self_attn.causal for layer in (*lm.transformer.layers, *lm.depformer.layers)):
            raise Unsupported("causal must be true, got false")
        self.temporal = Temporal(lm, packing)
        self.norm = Norm(lm.out_norm, packing)
        schedule = lm.depformer_weights_per_step_schedule or range(lm.dep_q)
        inputs = [lm.depformer_in[k if lm.depformer_multi_linear else 0] for k in schedule]
        heads = [weight_of(linear, packing) for linear in (lm.text_linear, *inputs)]
        self.heads = packing.linear(torch.cat(heads) * self.norm.fold)
        self.head_sizes = [len(head) for head in heads]
        self.cardinalities = (len(heads[0]), lm.card)
        self.padding = lm.text_padding_token_id
        self.depth = nn.ModuleList(DepthStep(lm, k, packing) for k in range(lm.dep_q))
        first = lm.depformer.layers[0].self_attn
        self.depth_shape = (len(lm.depformer.layers), first.num_heads, first.embed_dim // first.num_heads)
        self.register_buffer("table", sampler.gumbel_table(max(self.cardinalities)).to(packing.device))
        self.register_buffer("streams", torch.arange(1 + lm.dep_q, device=packing.device))

    def forward(self, tokens: Tensor, rings: Tensor, rows: Tensor, positions: Tensor, draws: Draws | None = None,
                shapes: Shapes | None = None, bends: Bends | None = None, decode: Decode | None = None) -> Tensor:
        """tokens [n, streams], rows and positions [n] -> [n, 1 + own_codebooks]; all greedy without `draws`.

        With `shapes` rows must be 0..n, and no value is looked at on the way. With `decode`, which needs them, a row
        of a negative position takes no part.
        """
        layers, heads, dim = self.depth_shape
        places = rows if decode else attention.places(rings[0], rows, positions)  # `decode` finds them itself

        def attend(heads: Tensor, ring: Tensor) -> Tensor:
            if decode:
                return decode(heads, ring, positions)
            if shapes:
                return attention.attend_prefix(heads, ring, positions, places, shapes.filled)
            attended: Tensor = attention.attend_filled(heads, ring, rows, positions, places)
            return attended

        context = self.norm(self.temporal(tokens, rings, positions, attend))
        text_logits, *contexts = self.heads(context).split(self.head_sizes, dim=-1)
        noises: list[Tensor] = []
        if draws is not None:
            starts = sampler.window_starts(draws.seed, positions, self.streams)
            text, audio = self.cardinalities
            noises += sampler.noise(self.table, starts[:, :1], text).unbind(1)
            noises += sampler.noise(self.table, starts[:, 1:], audio).unbind(1)
        if bends is not None:
            text_logits = sampler.reshaped(text_logits, self.padding, *bends[1:])
        token = self._draw(0, text_logits, draws, noises, shapes, bends)
        drawn = [token]
        past = context.new_empty((layers, 2, tokens.shape[0] * heads, len(self.depth), dim))
        for codebook, step in enumerate(self.depth):
            logits = step(token.squeeze(1), contexts[codebook], past)
            token = self._draw(codebook + 1, logits, draws, noises, shapes, bends)
            drawn.append(token)
        return torch.cat(drawn, dim=1)

    def prefill(self, tokens: Tensor, rings: Tensor, row: int, positions: Tensor, held: Tensor) -> None:
        """Put many successive steps of one row into the rings: tokens [n, streams] at positions [n].

        `held` [filled] is the position each slot of the row's ring holds once that is done, as far as it is filled.
        """
        places = attention.places(rings[0], torch.full_like(positions, row), positions)
        unseen = held > positions[:, None]
        bias = torch.zeros(unseen.shape, device=held.device).masked_fill_(unseen, -math.inf)

        def attend(heads: Tensor, ring: Tensor) -> Tensor:
            return attention.attend_history(heads, ring, row, bias, places)

        self.temporal(tokens, rings, positions, attend)

    def _draw(self, stream: int, logits: Tensor, draws: Draws | None, noises: list[Tensor], shapes: Shapes | None,
              bends: Bends | None) -> Tensor:
        """Tokens [n, 1] of one stream from its logits [n, entries], or what they are forced to be."""
        token: Tensor
        if draws is None:
            token = logits.argmax(dim=-1, keepdim=True) if shapes else sampler.largest(logits)
        else:
            kind = min(stream, 1)
            temperature, top_k = draws.temperature[:, kind : kind + 1], draws.top_k[:, kind : kind + 1]
            if shapes:
                token = sampler.draw_by_threshold(logits, noises[stream], temperature, top_k, shapes.top_k[kind])
            else:
                token = sampler.draw_by_rejection(logits, noises[stream], temperature, top_k)
        if bends is not None:
            forced = bends.forced[:, stream : stream + 1]
            token = torch.where(forced < 0, token, forced)
        return token
