"""Mimi's two halves as functions from one frame of some rows to the next, built from moshi's modules and weights.

moshi's own streaming runs every row of the batch, keeps a state object in each of its modules and re-lays every
convolution's weights at each step. Here a step takes any rows, all its past lies in a few flat tensors, and every
shape is fixed by the number of rows, so that it can be traced or captured. Activations are [n, steps, channels].
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import cast

import numpy as np
import torch
from moshi.models.compression import MimiModel
from moshi.modules.conv import StreamingConv1d, StreamingConvTranspose1d
from moshi.modules.seanet import SEANetResnetBlock
from moshi.quantization import ResidualVectorQuantizer, SplitResidualVectorQuantizer
from numpy.typing import NDArray
from torch import Tensor, nn

from services.codec.attention import Transformer
from services.codec.codes import MISSING
from services.codec.packed import Convolution, Linear, elu, static_shape
from services.codec.past import Past


class Convolve(nn.Module):
    """A causal convolution that remembers its rows' past, and may hear its input through an ELU."""

    def __init__(self, past: Past, convolution: Convolution, activate: bool = False) -> None:
        super().__init__()
        self._past, self._convolution, self._activate = past, convolution, activate
        self._place = None
        if convolution.past:
            self._place = past.reserve(convolution.past, convolution.inputs, convolution.input_steps)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, steps, inputs] to [n, steps / stride, outputs]."""
        if self._place is not None:
            x = self._past.extend(self._place, x, activate=self._activate)
        elif self._activate:
            x = elu(x)
        return cast(Tensor, self._convolution(x))


class Transposed(nn.Module):
    """A transposed convolution of kernel 2 S and stride S: each input step makes S outputs, which hear it and the one
    before. So it is a plain convolution of kernel 2 with S times the channels, whose steps are then laid out in line.
    """

    def __init__(self, past: Past, conv: nn.ConvTranspose1d, steps: int, activate: bool) -> None:
        super().__init__()
        stride = conv.stride[0]
        if conv.kernel_size[0] != 2 * stride or conv.groups != 1:
            raise ValueError("Mimi's transposed convolutions must be dense, of a kernel twice their stride")
        # [inputs, outputs, 2 S] to [S, outputs, inputs, 2], the older input first.
        weight = conv.weight.unflatten(2, (2, stride)).flip(2).permute(3, 1, 0, 2).flatten(0, 1)
        bias = None if conv.bias is None else conv.bias.repeat(stride)
        self._convolve = Convolve(past, Convolution(weight, bias, steps), activate)
        self._shape = (stride, conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, steps, inputs] to [n, steps * stride, outputs]."""
        n, steps, _ = static_shape(x)
        stride, outputs = self._shape
        return cast(Tensor, self._convolve(x).reshape(n, steps * stride, outputs))


class Residual(nn.Module):
    """A block beside a shortcut: the block's last convolution is of kernel 1, so it can add in its own pass."""

    def __init__(self, past: Past, block: SEANetResnetBlock, steps: int) -> None:
        super().__init__()
        *body, activation, last = block.block
        conv = last.conv.conv
        if conv.kernel_size[0] != 1 or not _is_elu(activation):
            raise ValueError("Mimi's residual blocks must end with an ELU and a convolution of kernel 1")
        self._body, _ = _seanet(past, body, steps)
        self._last = Linear(conv.weight[:, :, 0], conv.bias)
        shortcut = block.shortcut
        self._shortcut = shortcut if isinstance(shortcut, nn.Identity) else _seanet(past, [shortcut], steps)[0]

    def forward(self, x: Tensor) -> Tensor:
        """[n, steps, channels] to the same."""
        return self._last.add_to(self._shortcut(x), elu(self._body(x)))


class Downsample(nn.Module):
    """The strided convolution before the quantizer; before a call's first frame it sees that frame's first step."""

    def __init__(self, past: Past, conv: nn.Conv1d, steps: int) -> None:
        super().__init__()
        self._convolution = _convolution(conv, steps)
        self._past = past
        self._place = past.reserve(self._convolution.past, self._convolution.inputs, steps)

    def forward(self, x: Tensor, fresh: Tensor) -> Tensor:
        """x [n, steps, channels]; fresh, bool [n], marks the rows whose first frame this is."""
        before = torch.where(fresh[:, None, None], x[:, :1], self._past.before(self._place))
        return cast(Tensor, self._convolution(self._past.extend(self._place, x, before)))


class Upsample(nn.Module):
    """The transposed convolution after the quantizer, each channel on its own."""

    def __init__(self, past: Past, conv: nn.ConvTranspose1d) -> None:
        super().__init__()
        # [inputs ago, output step, channel], of the two inputs that each output hears: the last one first.
        self.register_buffer("_weight", conv.weight[:, 0].T.reshape(2, conv.stride[0], -1).contiguous())
        self._past = past
        self._place = past.reserve(1, conv.in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 1, channels] to [n, stride, channels]."""
        both = self._past.extend(self._place, x)
        weight = cast(Tensor, self._weight)
        return (both[:, 1:, None] * weight[0] + both[:, :-1, None] * weight[1]).flatten(1, 2)


class EncoderHalf(nn.Module):
    """PCM [n, samples] to codes, int64 [n, codebooks]."""

    memory: Tensor

    def __init__(self, mimi: MimiModel, rows: int) -> None:
        super().__init__()
        self._past = Past()
        self._seanet, steps = _seanet(self._past, mimi.encoder.model, mimi.frame_size)
        self._transformer = Transformer(mimi.encoder_transformer, rows, steps)
        self._downsample = None
        if mimi.encoder_frame_rate != mimi.frame_rate:
            self._downsample = Downsample(self._past, mimi.downsample.conv.conv.conv, steps)
        self.search = Search(mimi.quantizer)
        self.register_buffer("memory", torch.zeros(rows, self._past.width, device=next(mimi.parameters()).device))

    @property
    def products(self) -> tuple[nn.Module, ...]:
        """The parts that may compute in lower precision."""
        return self._seanet, self._transformer

    @property
    def frames(self) -> Fraction:
        """How far back a frame's answer hears."""
        return self._past.frames + self._transformer.frames

    def clear(self, row: int) -> None:
        """The row's next frame is the first of a call."""
        self.memory[row] = 0
        self._transformer.clear(row)

    def forward(self, rows: Tensor, pcm: Tensor) -> Tensor:
        """One frame of each of `rows`, int64 [n]."""
        fresh = self._transformer.positions.index_select(0, rows) == 0
        self._past.load(self.memory.index_select(0, rows))
        x = self._transformer(rows, self._seanet(pcm[:, :, None]))
        if self._downsample is not None:
            x = self._downsample(x, fresh)
        self.memory.index_copy_(0, rows, self._past.left())
        return cast(Tensor, self.search(x[:, 0]))

    def advance(self, row: int, pcm: Tensor) -> Tensor:
        """Many frames of one row at once, float32 [frames, samples], to what `search` takes, [frames, channels]."""
        fresh = self._transformer.positions[row, None] == 0
        self._past.load(self.memory[row, None])
        x = self._transformer.advance(row, self._seanet(pcm.reshape(1, -1, 1)))
        if self._downsample is not None:
            x = self._downsample(x, fresh)
        self.memory[row] = self._past.left()[0]
        return x[0]


class DecoderHalf(nn.Module):
    """Codes, as entries of `lookup`, int64 [n, codebooks], to PCM [n, samples]."""

    memory: Tensor

    def __init__(self, mimi: MimiModel, rows: int) -> None:
        super().__init__()
        self._past = Past()
        self.lookup = Lookup(mimi.quantizer)
        self._upsample, steps = None, 1
        if mimi.encoder_frame_rate != mimi.frame_rate:
            conv = mimi.upsample.convtr.convtr.convtr
            self._upsample, steps = Upsample(self._past, conv), conv.stride[0]
        self._transformer = Transformer(mimi.decoder_transformer, rows, steps)
        self._seanet, _ = _seanet(self._past, mimi.decoder.model, steps)
        self.register_buffer("memory", torch.zeros(rows, self._past.width, device=next(mimi.parameters()).device))

    @property
    def products(self) -> tuple[nn.Module, ...]:
        """The parts that may compute in lower precision."""
        return self._seanet, self._transformer

    @property
    def frames(self) -> Fraction:
        """How far back a frame's answer hears."""
        return self._past.frames + self._transformer.frames

    def clear(self, row: int) -> None:
        """The row's next frame is the first of a call."""
        self.memory[row] = 0
        self._transformer.clear(row)

    def forward(self, rows: Tensor, entries: Tensor) -> Tensor:
        """One frame of each of `rows`, int64 [n]."""
        self._past.load(self.memory.index_select(0, rows))
        x = self.lookup(entries)[:, None]
        if self._upsample is not None:
            x = self._upsample(x)
        pcm = self._seanet(self._transformer(rows, x)).flatten(1)
        self.memory.index_copy_(0, rows, self._past.left())
        return cast(Tensor, pcm)

    def advance(self, row: int, entries: Tensor) -> Tensor:
        """Many frames of one row at once, int64 [frames, codebooks], to PCM [frames, samples]."""
        self._past.load(self.memory[row, None])
        x = self.lookup(entries)[None]
        if self._upsample is not None:
            x = self._upsample(x)
        pcm = self._seanet(self._transformer.advance(row, x))
        self.memory[row] = self._past.left()[0]
        return cast(Tensor, pcm.reshape(len(entries), -1))


class Search(nn.Module):
    """Residual vector quantization: at each level the entry nearest to what the levels before left over."""

    def __init__(self, quantizer: SplitResidualVectorQuantizer) -> None:
        super().__init__()
        rvqs = (quantizer.rvq_first, quantizer.rvq_rest)
        self._project = Linear(torch.cat([rvq.input_proj.weight[:, :, 0] for rvq in rvqs]))
        self._chains = nn.ModuleList([nn.ModuleList([Level(entries) for entries in _entries(rvq)]) for rvq in rvqs])

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels] to int64 [n, codebooks]."""
        codes = []
        for chain, left in zip(self._chains, self._project(x).chunk(2, -1), strict=True):
            for level in cast(nn.ModuleList, chain):
                nearest, left = level(left)
                codes.append(nearest)
        return torch.stack(codes, 1)


class Level(nn.Module):
    """One codebook, [entries, dimension]."""

    def __init__(self, entries: Tensor) -> None:
        super().__init__()
        self.register_buffer("_entries", entries)
        # The squared distance to each entry, but for |x|^2, which is the same for all of them.
        self._distances = Linear(-2 * entries, (entries ** 2).sum(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, dimension] to the nearest entries, int64 [n], and what they leave over."""
        nearest = self._distances(x).argmin(-1)
        return nearest, x - cast(Tensor, self._entries).index_select(0, nearest)


class Lookup(nn.Module):
    """The sum of the entries that codes name, projected; the projection is folded into the entries.

    One table holds all codebooks' entries, and a row of nothing at its end for codes that are MISSING.
    """

    def __init__(self, quantizer: SplitResidualVectorQuantizer) -> None:
        super().__init__()
        table = [entries @ rvq.output_proj.weight[:, :, 0].T
                 for rvq in (quantizer.rvq_first, quantizer.rvq_rest) for entries in _entries(rvq)]
        self.register_buffer("_table", torch.cat([*table, torch.zeros_like(table[0][:1])]))
        self._first = np.arange(len(table)) * int(quantizer.cardinality)
        self._nothing = len(table) * int(quantizer.cardinality)

    def entries(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the codes [n, codebooks] are in the table, on the host."""
        return np.where(codes == MISSING, self._nothing, codes + self._first)

    def forward(self, entries: Tensor) -> Tensor:
        """int64 [n, codebooks] to [n, channels]."""
        named = cast(Tensor, self._table).index_select(0, entries.flatten())
        n, codebooks = static_shape(entries)
        return named.view(n, codebooks, -1).sum(1)


def _entries(rvq: ResidualVectorQuantizer) -> list[Tensor]:
    """The codebooks in use, each [entries, dimension]."""
    return [layer.embedding for layer in rvq.vq.layers[:rvq.n_q]]


def _seanet(past: Past, modules: Iterable[nn.Module], steps: int) -> tuple[nn.Sequential, int]:
    """The stages of a SEANet encoder or decoder that is fed `steps` steps a frame, and the steps that it makes."""
    stages: list[nn.Module] = []
    activate = False
    for module in modules:
        if isinstance(module, StreamingConv1d):
            conv = module.conv.conv
            stages.append(Convolve(past, _convolution(conv, steps), activate))
            steps //= conv.stride[0]
        elif isinstance(module, StreamingConvTranspose1d):
            convtr = module.convtr.convtr
            stages.append(Transposed(past, convtr, steps, activate))
            steps *= convtr.stride[0]
        elif isinstance(module, SEANetResnetBlock) and not activate:
            stages.append(Residual(past, module, steps))
        elif not _is_elu(module) or activate:
            raise ValueError(f"Mimi has a {type(module).__name__} where moshi-mesh cannot stream it")
        activate = _is_elu(module)
    if activate:
        raise ValueError("Mimi must not end with an ELU")
    return nn.Sequential(*stages), steps


def _is_elu(module: nn.Module) -> bool:
    return isinstance(module, nn.ELU) and module.alpha == 1


def _convolution(conv: nn.Conv1d, steps: int) -> Convolution:
    if conv.groups != 1:
        raise ValueError("Mimi's convolutions must not be grouped")
    return Convolution(conv.weight, conv.bias, steps, conv.stride[0], conv.dilation[0])
