"""The layers of Moshi's two transformers, for one step of a few rows, with weights packed for speed.

The scale of every RMS norm, of the attention's queries and of the layers themselves lives in the weights that
follow; packing refuses what moshi can express and this engine does not compute.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.lm.linear import Packing

Attend = Callable[[Tensor, Tensor], Tensor]
"""Queries, keys and values of all heads, and the layer's ring, to what was attended: see `attention`."""


class Unsupported(ValueError):
    """The checkpoint uses a part of moshi that this engine does not have."""


class Norm(nn.Module):
    """RMS norm without its scale, which is folded into the next weights: `fold` gives what to multiply them by."""

    floor: Tensor

    def __init__(self, norm: Any, packing: Packing) -> None:
        super().__init__()
        if type(norm).__name__ != "RMSNorm":
            raise Unsupported(f"norm must be rms_norm or rms_norm_f32, got {type(norm).__name__}")
        scale = norm.alpha.detach().to(packing.device).float().flatten()
        # x / sqrt(mean(x^2) + eps) = sqrt(dim) * x / sqrt(|x|^2 + dim * eps)
        self.fold = scale * math.sqrt(scale.numel())
        self.register_buffer("floor", torch.tensor(math.sqrt(scale.numel() * norm.eps), device=packing.device))

    def forward(self, x: Tensor) -> Tensor:
        """[n, dim] -> [n, dim]."""
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor)


class FeedForward(nn.Module):
    """x + gate(norm(x)), with SiLU gating."""

    def __init__(self, norm: Any, gating: Any, scale: Tensor | None, packing: Packing) -> None:
        super().__init__()
        if gating is None or gating.activation is not functional.silu:
            raise Unsupported("gating must be silu")
        self.norm = Norm(norm, packing)
        self.inner = packing.linear(weight_of(gating.linear_in, packing) * self.norm.fold)
        self.outer = packing.linear(scale_rows(weight_of(gating.linear_out, packing), scale))

    def forward(self, x: Tensor) -> Tensor:
        """[n, dim] -> [n, dim]."""
        gate, value = self.inner(self.norm(x)).chunk(2, dim=-1)
        return self.outer.add(x, functional.silu(gate) * value)


class TemporalLayer(nn.Module):
    """One layer of the main transformer."""

    def __init__(self, layer: Any, packing: Packing) -> None:
        super().__init__()
        attention = layer.self_attn
        if layer.cross_attention is not None:
            raise Unsupported("cross attention is not supported")
        self.norm = Norm(layer.norm1, packing)
        projection = scale_queries(weight_of(attention.in_projs[0], packing), attention)
        self.heads = attention.num_heads + 2 * (attention.num_heads // attention.kv_repeat)
        self.pairs = (self.heads, attention.embed_dim // attention.num_heads // 2, 2)
        if not attention.rope.interleave:
            projection = pair_up(projection, attention)
        self.project = packing.linear(projection * self.norm.fold)
        self.output = packing.linear(
            scale_rows(weight_of(attention.out_projs[0], packing), layer_scale(layer.layer_scale_1)))
        self.feed_forward = FeedForward(layer.norm2, layer.gating, layer_scale(layer.layer_scale_2), packing)

    def forward(self, x: Tensor, rotation: Tensor, ring: Tensor, attend: Attend) -> Tensor:
        """x [n, dim] -> [n, dim], with the layer's ring [2, slots, kv_heads, context, width]."""
        pairs = self.project(self.norm(x)).view(-1, *self.pairs)
        heads = torch.view_as_real(torch.view_as_complex(pairs) * rotation).flatten(2)
        output: Tensor = self.feed_forward(self.output.add(x, attend(heads, ring)))
        return output


class DepthLayer(nn.Module):
    """One layer of the depth transformer at one position: Moshi has separate weights for each."""

    def __init__(self, layer: Any, position: int, packing: Packing) -> None:
        super().__init__()
        attention = layer.self_attn
        if attention.kv_repeat != 1:
            raise Unsupported("depformer_kv_repeat must be 1")
        if not isinstance(layer.gating, nn.ModuleList):
            raise Unsupported("depformer_weights_per_step must be true and depformer_gating silu")
        schedule = attention.weights_per_step_schedule
        step = position if schedule is None else schedule[position]
        self.norm = Norm(layer.norm1, packing)
        projection = scale_queries(weight_of(attention.in_projs[step], packing), attention)
        if position == 0:
            projection = projection[attention.embed_dim :]
        self.project = packing.linear(projection * self.norm.fold)
        self.output = packing.linear(
            scale_rows(weight_of(attention.out_projs[step], packing), layer_scale(layer.layer_scale_1)))
        self.feed_forward = FeedForward(layer.norm2, layer.gating[step], layer_scale(layer.layer_scale_2), packing)
        self.position = position
        self.heads = attention.num_heads
        self.head_dim = attention.embed_dim // attention.num_heads

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """past [2, n * heads, positions, head_dim] holds the keys and values of earlier positions; ours are added."""
        kinds = 2 if self.position == 0 else 3
        heads = self.project(self.norm(x)).view(-1, kinds, self.heads, self.head_dim).transpose(0, 1).flatten(1, 2)
        past.select(2, self.position).copy_(heads.narrow(0, kinds - 2, 2))
        if self.position == 0:
            attended = heads.select(0, 1).view_as(x)
        else:
            keys, values = past.narrow(2, 0, self.position + 1).unbind()
            scores = torch.bmm(heads.select(0, 0).unsqueeze(1), keys.transpose(1, 2))
            attended = torch.bmm(torch.softmax(scores, dim=-1), values).view_as(x)
        output: Tensor = self.feed_forward(self.output.add(x, attended))
        return output


def weight_of(linear: Any, packing: Packing) -> Tensor:
    """The weight of a plain linear layer, float32 [outputs, inputs], on the device: a GPU packs 7 B in seconds."""
    if type(linear) is not nn.Linear:
        raise Unsupported(f"{type(linear).__name__} layers are not supported: load the model unquantised and with "
                          "LoRA weights fused")
    if linear.bias is not None:
        raise Unsupported("biases are not supported")
    weight: Tensor = linear.weight.detach().to(packing.device).float()
    return weight


def layer_scale(module: Any) -> Tensor | None:
    """The scale of a LayerScale; None where the layer has none."""
    return None if isinstance(module, nn.Identity) else module.scale.detach().float()


def scale_rows(weight: Tensor, scale: Tensor | None) -> Tensor:
    """diag(scale) @ weight."""
    return weight if scale is None else weight * scale.to(weight.device)[:, None]


def scale_queries(projection: Tensor, attention: Any) -> Tensor:
    """The query, key and value projection with the attention's 1/sqrt(head_dim) in its queries."""
    scale = torch.ones(len(projection), 1, device=projection.device)
    scale[: attention.embed_dim] = (attention.embed_dim // attention.num_heads) ** -0.5
    return projection * scale


def pair_up(projection: Tensor, attention: Any) -> Tensor:
    """Reorder the outputs of each query and key head from [real..., imaginary...] to (real, imaginary) pairs."""
    dim = attention.embed_dim // attention.num_heads
    rotated = dim * (attention.num_heads + attention.num_heads // attention.kv_repeat)
    pairs = projection[:rotated].view(-1, 2, dim // 2, projection.shape[1]).transpose(1, 2)
    return torch.cat((pairs.reshape(rotated, -1), projection[rotated:]))


def table_of(embedding: Any) -> Tensor:
    """What a `ScaledEmbedding` answers for each of its tokens (its norm and low-rank map applied), float32."""
    if embedding.demux_second_stream:
        raise Unsupported("demux_second_stream is not supported")
    tokens = torch.arange(embedding.num_embeddings, device=embedding.weight.device)
    table: Tensor = embedding(tokens).detach().float()
    return table
