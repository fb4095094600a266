"""The audio that a conversation has sent, for a mesh that has to hear the last seconds of it again."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator

from moshimesh.source import LONGEST_MS, SHORTEST_MS, PcmFormat

KEPT_S = 45  # of the caller's audio: what the codec remembers, and what was sent and not answered, with room to spare


class Sent:
    """The caller's audio: taken from its source when the mesh asks for it, its last seconds kept."""

    def __init__(self, pieces: AsyncIterator[bytes], pcm_format: PcmFormat) -> None:
        self.failure: BaseException | None = None  # what the source raised
        self._pieces = pieces
        self._shortest, self._longest = pcm_format.bytes_of(SHORTEST_MS), pcm_format.bytes_of(LONGEST_MS)
        self._keep_bytes = pcm_format.bytes_per_second * KEPT_S
        self._kept: deque[bytes] = deque()
        self._begin = self._end = 0  # positions, in bytes since the start, of what is kept
        self._coming: asyncio.Future[bytes] | None = None
        self._ended = False

    @property
    def begin(self) -> int:
        """The earliest byte that is kept."""
        return self._begin

    @property
    def end(self) -> int:
        """Bytes that the source has given."""
        return self._end

    async def read(self, position: int) -> bytes | None:
        """Audio from a position to the end of the piece it lies in, with the next piece if it would be too short for
        the mesh; None at the end of all. Raises what the source raises.
        """
        while self._end - position < self._shortest and not self._ended:
            await self._take()
        if position >= self._end:
            return None
        piece_end, following = self._end, b""
        for piece in reversed(self._kept):
            piece_begin = piece_end - len(piece)
            if piece_begin <= position:
                rest = piece[position - piece_begin:]
                return (rest + following)[:self._longest] if len(rest) < self._shortest else rest
            piece_end, following = piece_begin, piece
        raise AssertionError(f"position {position} is not kept any more")

    def stretches(self, begin: int, end: int, unit: int) -> Iterator[bytes]:
        """What is kept between two positions, in pieces as long as the mesh takes, each a multiple of `unit` bytes."""
        kept, first = b"".join(self._kept), self._begin
        longest = max(self._longest // unit, 1) * unit
        for position in range(begin, end, longest):
            yield kept[position - first:min(position + longest, end) - first]

    async def close(self) -> None:
        """Stop reading the source."""
        if self._coming is not None:
            self._coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._coming

    async def _take(self) -> None:
        """Take the source's next piece. A reader that is cancelled while it waits leaves the piece to the next one."""
        if self._coming is None:
            self._coming = asyncio.ensure_future(self._pieces.__anext__())
        coming = self._coming
        await asyncio.wait((coming,))
        if self._coming is not coming:
            return  # another reader was faster
        self._coming = None
        try:
            piece = coming.result()
        except StopAsyncIteration:
            self._ended = True
            return
        except asyncio.CancelledError as error:  # as such it would look as if the caller's own task were cancelled
            self.failure = RuntimeError("the iterator of the audio was cancelled")
            raise self.failure from error
        except BaseException as error:
            self.failure = error
            raise
        self._kept.append(piece)
        self._end += len(piece)
        while self._end - self._begin - len(self._kept[0]) > self._keep_bytes:
            self._begin += len(self._kept.popleft())
