"""Ogg/Opus streams (RFC 3533, RFC 7845) in pieces, as Moshi's clients and servers send them: mono, one stream.

Bytes come in any cut: headers in a message of their own, half a page, several pages, several packets a page. What is
kept between two pieces is at most a page and a packet.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from services.gateway.edges.opus import MOST_PACKET_BYTES, OpusDecoder, OpusEncoder
from services.gateway.path.audio import Pcm
from services.mesh.errors import InvalidRequest

# capture pattern, version, flags, granule position, serial number, page number, checksum, segments
_HEADER = struct.Struct("<4sBBqIIIB")
_CHECKSUM = slice(22, 26)
_CONTINUED, _FIRST = 1, 2
_FULL_SEGMENT = 255  # a packet goes on in the next segment
# id, version, channels, samples to skip at 48 kHz, rate of the source, gain in 1/256 dB, mapping of channels
_OPUS_HEAD = struct.Struct("<8sBBHIhB")
_GRANULES_HERTZ = 48_000  # the clock of an Opus stream, whatever its source's rate is
_VENDOR = b"moshi-mesh"
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def checksum(page: bytes) -> int:
    """Ogg's CRC-32 of a page whose own checksum is zero: zlib's with the bits of each byte the other way round."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")


class _Page(NamedTuple):
    """A page that is whole: where its body begins and ends, and how long each segment of it is."""

    flags: int
    serial: int
    lengths: bytes
    begin: int
    end: int


class OggReader:
    """Packets from the bytes of one stream, or of several after each other."""

    def __init__(self) -> None:
        self._page = b""  # what has come of the next page
        self._packet: list[bytes] | None = None  # what has come of a packet that goes on
        self._serial: int | None = None

    def packets(self, data: bytes) -> Iterator[bytes]:
        """The packets that are whole now. Take all before the next call. Raises InvalidRequest."""
        data, at = self._page + data, 0
        self._page = b""
        while (page := self._next(data, at)) is not None:
            if page.flags & _FIRST:
                self._serial, self._packet = page.serial, None
            if page.serial == self._serial:
                yield from self._in_page(page, data)
            at = page.end
        self._page = data[at:]

    def _next(self, data: bytes, at: int) -> _Page | None:
        """The page that begins here; None: more must come."""
        if not b"OggS".startswith(data[at:at + 4]):
            raise _bad("the audio is not an Ogg stream, or bytes of it were lost")
        if len(data) - at < _HEADER.size:
            return None
        _, _, flags, _, serial, _, expected, segments = _HEADER.unpack_from(data, at)
        begin = at + _HEADER.size + segments
        lengths = data[at + _HEADER.size:begin]
        end = begin + sum(lengths)
        if len(lengths) < segments or len(data) < end:
            return None
        page = bytearray(data[at:end])
        page[_CHECKSUM] = bytes(4)
        if checksum(bytes(page)) != expected:
            raise _bad("the checksum of an Ogg page is wrong")
        return _Page(flags, serial, lengths, begin, end)

    def _in_page(self, page: _Page, data: bytes) -> Iterator[bytes]:
        packet, at = self._packet if page.flags & _CONTINUED else [], page.begin
        for length in page.lengths:
            if packet is not None:  # None: what it continues was in a page that never came
                packet.append(data[at:at + length])
                if sum(map(len, packet)) > MOST_PACKET_BYTES:
                    raise _bad(f"a packet is longer than {MOST_PACKET_BYTES} bytes")
            at += length
            if length < _FULL_SEGMENT:
                if packet is not None:
                    yield b"".join(packet)
                packet = []
        self._packet = packet or None


class OggOpusReader:
    """Samples from an Ogg/Opus stream."""

    def __init__(self, sample_rate_hertz: int) -> None:
        """What the samples shall have; the stream may have any rate that Opus knows, and one or two channels."""
        self._rate_hertz = sample_rate_hertz
        self._ogg = OggReader()
        self._decoder: OpusDecoder | None = None

    def packets(self, data: bytes) -> Iterator[bytes]:
        """The packets in the next bytes, headers among them, for `decode`. Raises InvalidRequest."""
        return self._ogg.packets(data)

    def decode(self, packet: bytes) -> Pcm | None:
        """A packet's samples, float32 [samples], 120 ms at most; None of a header. Raises InvalidRequest.

        Samples that the header says to skip are kept, as Moshi's servers keep them: their clients say 80 ms, and then a
        frame of their first word would be lost.
        """
        if packet.startswith(b"OpusHead"):
            self._decoder = self._opened(packet)
            return None
        if packet.startswith(b"OpusTags"):
            return None
        if self._decoder is None:
            raise _bad("the Ogg stream does not begin with Opus's header; send it first")
        return self._decoder.decode(packet) if packet else None

    def _opened(self, head: bytes) -> OpusDecoder:
        if len(head) < _OPUS_HEAD.size:
            raise _bad("Opus's header is cut")
        _, version, channels, _, _, gain, mapping = _OPUS_HEAD.unpack_from(head)
        if version >> 4 or channels not in (1, 2) or mapping:
            raise _bad(f"the Opus stream must have 1 or 2 channels, and be of version 1; got {channels} channels, "
                       f"version {version}, channel mapping {mapping}")
        return OpusDecoder(self._rate_hertz, gain)


class OggOpusWriter:
    """An Ogg/Opus stream from samples."""

    def __init__(self, sample_rate_hertz: int, packet_ms: int) -> None:
        """`packet_ms` is 10, 20, 40, 60 or 80: a page has one packet."""
        self._encoder = OpusEncoder(sample_rate_hertz)
        self._samples = sample_rate_hertz * packet_ms // 1000
        self._granules = _GRANULES_HERTZ // sample_rate_hertz  # per sample
        self._rest: Pcm = np.zeros(0, dtype=np.float32)  # less than a packet
        self._serial, self._pages, self._written = secrets.randbits(32), 0, 0
        head = _OPUS_HEAD.pack(b"OpusHead", 1, 1, self._encoder.lookahead * self._granules, sample_rate_hertz, 0, 0)
        tags = b"OpusTags" + struct.pack("<I", len(_VENDOR)) + _VENDOR + bytes(4)
        self._headers = self._page(head, _FIRST) + self._page(tags)

    def write(self, pcm: Pcm) -> Iterator[bytes]:
        """The pages that are whole with these samples, float32 [samples]; the headers come before the first."""
        self._rest = np.concatenate((self._rest, pcm)) if len(self._rest) else pcm
        while len(self._rest) >= self._samples:
            packet = self._encoder.encode(self._rest[:self._samples])
            self._rest = self._rest[self._samples:]
            self._written += self._samples
            page, self._headers = self._headers + self._page(packet), b""
            yield page

    def _page(self, packet: bytes, flags: int = 0) -> bytes:
        full, rest = divmod(len(packet), _FULL_SEGMENT)
        lengths = bytes([_FULL_SEGMENT] * full + [rest])
        page = bytearray(_HEADER.pack(b"OggS", 0, flags, self._written * self._granules, self._serial, self._pages, 0,
                                      len(lengths)) + lengths + packet)
        page[_CHECKSUM] = checksum(bytes(page)).to_bytes(4, "little")
        self._pages += 1
        return bytes(page)


def _bad(message: str) -> InvalidRequest:
    return InvalidRequest("BAD_OPUS", message, field="audio", accepted="an Ogg/Opus stream")
