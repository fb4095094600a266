"""The network's step on a GPU with everything between its products in Triton's kernels: `network.Network`, in a third
of the launches.

The same products over the same weights, and the same numbers but for the order of sums.
"""

from typing import cast

import torch
from torch import Tensor

from services.lm import fused_kernels as kernels
from services.lm import sampler
from services.lm.decode_attention import attend_decode
from services.lm.layers import DepthLayer, FeedForward, Norm, TemporalLayer
from services.lm.linear import Float32Linear
from services.lm.network import Bends, DepthStep, Draws, Network


class FusedNetwork:
    """A step of rows 0..n, of which those of a negative position take no part. No value is looked at on the way."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._kind = torch.float32 if isinstance(network.heads, Float32Linear) else torch.bfloat16

    def __call__(self, tokens: Tensor, rings: Tensor, positions: Tensor, draws: Draws, bends: Bends | None = None
                 ) -> Tensor:
        """tokens [n, streams], positions [n], draws and bends of the rows -> [n, 1 + own_codebooks]."""
        network = self._network
        text_logits, *contexts = network.heads.raw(self._temporal(tokens, rings, positions)).split(
            network.head_sizes, dim=-1)
        if bends is not None:
            text_logits = sampler.reshaped(text_logits.float(), network.padding, *bends[1:])
        token = self._draw(0, text_logits, positions, draws, bends)
        drawn = [token]
        layers, heads, dim = network.depth_shape
        past = rings.new_empty((layers, 2, len(tokens) * heads, len(network.depth), dim), dtype=torch.float32)
        for codebook, step in enumerate(network.depth):
            logits = self._depth(cast(DepthStep, step), token, contexts[codebook], past)
            token = self._draw(codebook + 1, logits, positions, draws, bends)
            drawn.append(token)
        return torch.cat(drawn, dim=1)

    def _temporal(self, tokens: Tensor, rings: Tensor, positions: Tensor) -> Tensor:
        """What goes into the heads, [n, dim]."""
        temporal = self._network.temporal
        layers = [cast(TemporalLayer, layer) for layer in temporal.layers]
        following = [*(layer.norm for layer in layers[1:]), self._network.norm]
        angle = positions[:, None].float() * temporal.frequencies[0]
        rotation = torch.view_as_real(torch.polar(temporal.one.expand_as(angle), angle))
        x, normed = kernels.embed(tokens, temporal.offsets, temporal.table, layers[0].norm.floor, self._kind)
        for ring, layer, next_norm in zip(rings.unbind(), layers, following, strict=True):
            heads = layer.project.raw(normed).view(len(tokens), layer.heads, -1)
            attended = layer.output.raw(attend_decode(heads, ring, positions, rotation))
            x, normed = self._feed_forward(layer.feed_forward, x, attended, next_norm)
        return normed

    def _depth(self, step: DepthStep, previous: Tensor, context: Tensor, past: Tensor) -> Tensor:
        """As `DepthStep`, with previous [n, 1] and logits in whatever type the product gives."""
        layers = [cast(DepthLayer, layer) for layer in step.layers]
        following = [*(layer.norm for layer in layers[1:]), step.norm]
        x, normed = kernels.add_norm(context, step.table, layers[0].norm.floor, self._kind, at=previous)
        for layer_past, layer, next_norm in zip(past.unbind(), layers, following, strict=True):
            heads = layer.project.raw(normed)
            attended = layer.output.raw(kernels.depth_attend(heads, layer_past, layer.position, self._kind))
            x, normed = self._feed_forward(layer.feed_forward, x, attended, next_norm)
        return step.head.raw(normed)

    def _feed_forward(self, part: FeedForward, x: Tensor, update: Tensor, next_norm: Norm | None
                      ) -> tuple[Tensor, Tensor]:
        """The residual stream after an update and what the gating adds, and its norm for the product that follows."""
        x, normed = kernels.add_norm(x, update, part.norm.floor, self._kind)
        gated = kernels.gate(part.inner.raw(normed), self._kind)
        return kernels.add_norm(x, part.outer.raw(gated), next_norm.floor if next_norm else None, self._kind)

    def _draw(self, stream: int, logits: Tensor, positions: Tensor, draws: Draws, bends: Bends | None) -> Tensor:
        """Tokens [n, 1] of one stream from its logits [n, entries], or what they are forced to be."""
        kind = min(stream, 1)
        token = kernels.draw(logits, self._network.table, draws.seed, positions,
                             draws.temperature[:, kind : kind + 1], draws.top_k[:, kind : kind + 1], stream)
        if bends is not None:
            forced = bends.forced[:, stream : stream + 1]
            token = torch.where(forced < 0, token, forced)
        return token
