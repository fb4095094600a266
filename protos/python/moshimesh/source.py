"""The caller's audio, in the form in which it is given, as pieces that the mesh takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any

from moshimesh.audio.v1 import audio_pb2

PIECE_MS = 80  # of a recording: a frame of the model
SHORTEST_MS, LONGEST_MS = 10, 1000  # of a piece on the wire, see AudioChunk


@dataclass(frozen=True)
class PcmFormat:
    """How samples lie in the caller's audio: mono, little endian."""

    encoding: audio_pb2.AudioEncoding
    sample_bytes: int
    item: str  # of a typed buffer, as in the struct module
    dtype: str
    sample_rate_hertz: int

    @classmethod
    def of(cls, encoding: str, sample_rate_hertz: int) -> PcmFormat:
        """By the name of its encoding. Raises ValueError."""
        if sample_rate_hertz < 1:
            raise ValueError(f"sample_rate_hertz must be at least 1, got {sample_rate_hertz}")
        if encoding == "s16":
            return cls(audio_pb2.AUDIO_ENCODING_PCM_S16LE, 2, "h", "int16", sample_rate_hertz)
        if encoding == "f32":
            return cls(audio_pb2.AUDIO_ENCODING_PCM_F32LE, 4, "f", "float32", sample_rate_hertz)
        raise ValueError(f"encoding must be 's16' or 'f32', got {encoding!r}")

    @property
    def bytes_per_second(self) -> int:
        """Of audio."""
        return self.sample_rate_hertz * self.sample_bytes

    def bytes_of(self, milliseconds: int) -> int:
        """So much audio, in whole samples; at least one."""
        return max(self.sample_rate_hertz * milliseconds // 1000, 1) * self.sample_bytes

    def read(self, audio: object) -> bytes:
        """The samples of anything that has the buffer protocol. Raises TypeError.

        Bytes are taken as they are. A buffer that knows the type of its items (array.array, numpy.ndarray) must have
        the encoding's, int16 or float32, in one dimension.
        """
        try:
            view = memoryview(audio)  # type: ignore[arg-type]
        except (TypeError, ValueError, BufferError):
            raise TypeError("audio must be bytes or have the buffer protocol (bytearray, memoryview, numpy.ndarray), "
                            f"got {_name(audio)}") from None
        if view.format not in ("B", "b", "c") and view.format.lstrip("@=<") != self.item:
            raise TypeError(f"the samples of this encoding are {self.dtype}, got a {_name(audio)} of "
                            f"{getattr(audio, 'dtype', repr(view.format))}")
        if view.ndim != 1:
            raise TypeError(f"audio must be mono, in one dimension, got a {_name(audio)} of shape {view.shape}")
        return view.tobytes()


class Source:
    """Takes the caller's audio from a buffer, as a whole, or from an async iterable of buffers."""

    def __init__(self, pcm: Any, pcm_format: PcmFormat, live: bool) -> None:
        """A live recording comes at the speed of speech. Raises TypeError."""
        self.bytes_dropped = 0  # at the end: less than a sample
        self._format = pcm_format
        if isinstance(pcm, AsyncIterable):
            self._given: AsyncIterable[object] = pcm
            return
        try:
            recording = pcm_format.read(pcm)
        except TypeError as error:
            if _is_buffer(pcm):
                raise
            raise TypeError("pcm must be a recording (bytes, or anything else with the buffer protocol) or an async "
                            f"iterable of such pieces, got {_name(pcm)}") from error
        self._given = _pieces(recording, pcm_format.bytes_of(PIECE_MS), live)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Whole samples, SHORTEST_MS to LONGEST_MS at a time; the last piece may be shorter.

        What a pipe has cut in the middle of a sample is put together again. Raises TypeError, or what the caller's
        iterator raises.
        """
        shortest, longest = self._format.bytes_of(SHORTEST_MS), self._format.bytes_of(LONGEST_MS)
        rest = b""
        async for given in self._given:
            rest += self._format.read(given)
            while len(rest) >= shortest:
                whole = min(len(rest) // self._format.sample_bytes * self._format.sample_bytes, longest)
                yield rest[:whole]
                rest = rest[whole:]
        self.bytes_dropped = len(rest) % self._format.sample_bytes
        if last := rest[:len(rest) - self.bytes_dropped]:
            yield last


async def _pieces(recording: bytes, piece_bytes: int, live: bool) -> AsyncIterator[bytes]:
    now = asyncio.get_running_loop().time
    piece_s = PIECE_MS / 1000
    due = now()
    for begin in range(0, len(recording), piece_bytes):
        if live:
            due += piece_s
            if now() - due > piece_s:  # after a pause of the call the rest is not hurried along, or it would be skipped
                due = now()
            await asyncio.sleep(max(due - now(), 0))
        yield recording[begin:begin + piece_bytes]


def _is_buffer(pcm: object) -> bool:
    try:
        memoryview(pcm)  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        return False
    return True


def _name(thing: object) -> str:
    return "None" if thing is None else type(thing).__name__
