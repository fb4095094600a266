"""What codes are worth as speech: a table that belongs to the codec's weights, and comes with its ready message."""

from __future__ import annotations

import functools
from collections.abc import Sequence

UNITS = 16  # of the table's numbers make one unit of log odds


class SpeechTable:
    """Log odds of speech by codebook and entry."""

    def __init__(self, values: bytes, entries: int) -> None:
        """`values`: EncodeReady.speech_table, of codebooks with so many entries. Empty: nothing is known."""
        # Lists of small integers: a few look-ups cost less than one call of numpy.
        numbers = memoryview(values).cast("b").tolist()
        self._rows = [numbers[start:start + entries] for start in range(0, len(numbers), entries or 1)]

    def __bool__(self) -> bool:
        return bool(self._rows)

    def log_odds(self, codes: Sequence[int]) -> int:
        """Of speech in a frame with these codes, in units of 1/16. Codes of codebooks beyond the table say nothing."""
        total = 0
        for row, code in zip(self._rows, codes):  # noqa: B905
            total += row[code]
        return total


@functools.lru_cache(maxsize=8)  # one for each codec that is served
def speech_table(values: bytes, entries: int) -> SpeechTable:
    """The same, once for all calls."""
    return SpeechTable(values, entries)
