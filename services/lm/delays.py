"""The delay line: which token of which stream the model sees, and emits, at each step.

Moshi's streams run with delays (0 for text and the first codebook, 1 frame for the others), so that a step sees
codes of different frames and a frame is complete only `max(delays)` steps after it was heard. This is the
bookkeeping of `moshi.models.lm.LMGen._step`, on the host: a few dozen integers per row, and the engine needs the
positions there anyway to choose its shapes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

UNGENERATED = -2
"""LMGen's value for a token that does not exist (yet)."""


class DelayLine:
    """The last tokens of every stream of every row.

    Streams are ordered text, own codebooks, user codebooks, as in the model. `positions` counts the steps each
    row has made since it was opened.
    """

    def __init__(self, slots: int, delays: Sequence[int], own_codebooks: int, initial: Sequence[int]) -> None:
        """`initial[k]` is the token that stream k starts with, before it has any."""
        self.positions: Ints = np.zeros(slots, np.int64)
        self._delays = np.asarray(delays, np.int64)
        self._initial = np.asarray(initial, np.int64)
        self._generated = 1 + own_codebooks
        self._max_delay = int(self._delays.max())
        self._length = self._max_delay + 2
        self._streams = np.arange(len(delays))
        self._line: Ints = np.full((slots, len(delays), self._length), UNGENERATED, np.int64)

    def open(self, row: int) -> None:
        """Forget what the row has seen."""
        self.positions[row] = 0
        self._line[row] = UNGENERATED

    def copy_row(self, row: int) -> Ints:
        """What `restore_row` brings back."""
        line: Ints = self._line[row].copy()
        return line

    def restore_row(self, row: int, position: int, line: Ints) -> None:
        """Bring a row to where another one was."""
        self.positions[row] = position
        self._line[row] = line

    def feed(self, rows: Ints, codes: Ints) -> Ints:
        """Take the user's codes [n, user_codebooks] of one frame; the model's next input [n, streams]."""
        position, row = self.positions[rows][:, None], rows[:, None]
        user = self._streams[self._generated :]
        self._line[row, user, (position + self._delays[user]) % self._length] = codes
        line = self._line[row, self._streams, position % self._length]
        return np.where(position <= self._delays, self._initial, line)

    def take(self, rows: Ints, generated: Ints) -> Ints:
        """Take the model's output [n, 1 + own_codebooks] of one step; the tokens of the frame it completes.

        Rows that have not completed a frame yet get `UNGENERATED` everywhere.
        """
        self.positions[rows] += 1
        position, row = self.positions[rows][:, None], rows[:, None]
        own = self._streams[: self._generated]
        self._line[row, own, position % self._length] = generated
        frame = self._line[row, own, (position - self._max_delay + self._delays[own]) % self._length]
        return np.where(position <= self._max_delay, UNGENERATED, frame)

    def replay(self, row: int, codes: Ints, generated: Ints) -> Ints:
        """`feed` and `take` of successive steps [n, ...] of one row whose outcome is known; their inputs [n, streams].

        At once: step by step, this took longer than the model did.
        """
        position = self.positions[row] + np.arange(len(codes))[:, None]
        inputs = self._line[row, self._streams, position % self._length]
        inputs[1:, : self._generated] = generated[:-1]
        for stream in self._streams[self._generated :]:
            delay = self._delays[stream]
            inputs[delay:, stream] = codes[: len(codes) - delay, stream - self._generated]
        # The last steps fill the line whatever was there before.
        last = max(len(codes) - self._length, 0)
        self.positions[row] += last
        index = np.array([row])
        for step in range(last, len(codes)):
            self.feed(index, codes[[step]])
            self.take(index, generated[[step]])
        return np.where(position <= self._delays, self._initial, inputs)

    def amend(self, row: int, generated: Ints) -> None:
        """Replace what the row's last step generated [1 + own_codebooks], where it is known (not negative)."""
        last = self._line[row, : self._generated, self.positions[row] % self._length]  # a view
        last[:] = np.where(generated < 0, last, generated)

    def generated(self, tokens: Ints) -> Ints:
        """What each step had generated, from what `take` answered [frames, 1 + own_codebooks]; same shape.

        Negative where it has not been answered yet, and where nothing was or could be seen of it.
        """
        steps = np.full_like(tokens, UNGENERATED)
        for stream, delay in enumerate(self._delays[: self._generated]):
            shift = self._max_delay - delay
            steps[: max(len(tokens) - shift, 0), stream] = tokens[shift:, stream]
        return steps
