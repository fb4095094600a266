"""What is decided from outside about a session's tokens: those that are forced, and how the others are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.lm.delays import Ints
from services.lm.sampling import Sampling

DRAWN = -1
"""In the place of a token that is not forced."""


@dataclass(frozen=True)
class Directed:
    """What takes effect at one step."""

    sampling: Sampling | None = None
    """How to draw from this step on; None: as before."""
    tokens: Ints | None = None
    """Forced from the step's own frame on, int64 [frames, 1 + own_codebooks], DRAWN where they are not. They take the
    place of all that was forced from there on; None: that stays."""


@dataclass(frozen=True)
class DirectedAt:
    """What took effect at a past step."""

    step: int
    directed: Directed


class ForcedFrames:
    """The forced tokens of one row, by the frame that they belong to.

    A step makes each stream's token for the frame that is the stream's delay behind: so a frame's tokens are forced
    over as many steps as the longest delay, and the frame comes out whole.
    """

    def __init__(self, delays: Sequence[int]) -> None:
        """`delays` of the text and of each own codebook, in frames."""
        self._delays = np.asarray(delays)
        self._streams = np.arange(len(delays))
        self._first = 0
        self._tokens: Ints = np.empty((0, len(delays)), np.int64)

    def put(self, frame: int, tokens: Ints) -> None:
        """Force tokens [frames, streams] from a frame on, and nothing after them."""
        first = max(frame - int(self._delays.max()), 0)  # the tokens of these frames are not all made yet
        kept = np.full((frame - first, len(self._streams)), DRAWN, np.int64)
        for index, before in enumerate(range(first, frame)):
            if 0 <= before - self._first < len(self._tokens):
                kept[index] = self._tokens[before - self._first]
        self._first, self._tokens = first, np.concatenate([kept, tokens])

    def at(self, step: int) -> Ints:
        """What a step is forced to make, [streams]."""
        frames = step - self._delays - self._first
        known = (frames >= 0) & (frames < len(self._tokens))
        if not known.any():
            return np.full(len(self._streams), DRAWN, np.int64)
        forced: Ints = np.where(known, self._tokens[np.where(known, frames, 0), self._streams], DRAWN)
        return forced

    def over(self, step: int) -> bool:
        """Whether this step and all after it are free."""
        return step - int(self._delays.max()) >= self._first + len(self._tokens)
