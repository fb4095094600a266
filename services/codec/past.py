"""The past of a stack of causal layers, side by side in one row a caller."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from services.codec.packed import elu, static_shape


class Past:
    """The inputs that causal layers still need from earlier frames, of the rows of one step.

    Kept in one flat tensor [rows, width], so that a step reads and writes all of it in one operation each.
    """

    def __init__(self) -> None:
        self._shapes: list[tuple[int, int]] = []
        self.frames = Fraction(0)
        """How far back all layers together hear. An upper bound: it is exact where they form one chain."""
        self._before: list[Tensor] = []
        self._after: dict[int, Tensor] = {}

    @property
    def width(self) -> int:
        """How many numbers a row keeps."""
        return sum(steps * channels for steps, channels in self._shapes)

    def reserve(self, steps: int, channels: int, steps_per_frame: int) -> int:
        """A place for the last `steps` inputs of one layer; its index."""
        self._shapes.append((steps, channels))
        self.frames += Fraction(steps, steps_per_frame)
        return len(self._shapes) - 1

    def load(self, memory: Tensor) -> None:
        """Begins a step with what the one before left, [n, width]."""
        self._before = list(memory.split([steps * channels for steps, channels in self._shapes], 1))

    def before(self, place: int) -> Tensor:
        """The earlier inputs of one layer, [n, steps, channels]."""
        return self._before[place].view(-1, *self._shapes[place])

    def extend(self, place: int, x: Tensor, before: Tensor | None = None, activate: bool = False) -> Tensor:
        """`x` [n, new steps, channels] after the layer's earlier inputs (or `before`); remembers its end.

        With `activate` the layer hears elu(x), written where it belongs without a copy.
        """
        steps, channels = self._shapes[place]
        n, new_steps, _ = static_shape(x)
        before = self.before(place) if before is None else before
        if activate:
            whole = x.new_empty(n, steps + new_steps, channels)
            whole.narrow(1, 0, steps).copy_(before)
            elu(x, out=whole.narrow(1, steps, new_steps))
        else:
            whole = torch.cat([before, x], 1)
        self._after[place] = whole.narrow(1, new_steps, steps).reshape(n, steps * channels)
        return whole

    def left(self) -> Tensor:
        """Ends a step: what the next one must load, [n, width]."""
        return torch.cat([self._after[place] for place in range(len(self._shapes))], 1)
