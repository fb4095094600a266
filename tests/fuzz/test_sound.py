"""Sound in every shape that a caller may send it."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from services.gateway.edges.ogg import OggOpusWriter, checksum
from services.gateway.edges.opus import OpusEncoder
from tests.fuzz.budget import fuzz
from tests.fuzz.inputs import mutated
from tests.fuzz.parsers import RATE, SEPARATOR, ogg_pages, opus_packets, realtime_sound, sound_pieces

_TONE = np.sin(np.arange(RATE // 5) / 9).astype(np.float32) / 3
_STREAM = b"".join(OggOpusWriter(RATE, 80).write(np.tile(_TONE, 2)))
_PACKETS = [OpusEncoder(RATE).encode(_TONE[:samples]) for samples in (240, 480, 1920)]


def mended(data: bytes) -> bytes:
    """A stream whose pages have right checksums again, so that what is behind them is reached."""
    out, at = bytearray(data), data.find(b"OggS")
    while at >= 0 and at + 27 <= len(out):
        end = out.find(b"OggS", at + 4)
        segments = out[at + 26]
        whole = at + 27 + segments + sum(out[at + 27:at + 27 + segments])
        page = out[at:min(whole, len(out))]
        page[22:26] = bytes(4)
        out[at + 22:at + 26] = checksum(bytes(page)).to_bytes(4, "little")
        at = end
    return bytes(out)


@fuzz("Ogg pages", data=mutated(_STREAM, _STREAM[:200]), mend=st.booleans(), cuts=st.lists(st.integers(1, 400),
                                                                                        max_size=4))
def test_an_ogg_stream_is_sound_or_an_error(data: bytes, mend: bool, cuts: list[int]) -> None:
    data = mended(data) if mend else data
    for at in sorted(cuts, reverse=True):
        data = data[:at] + SEPARATOR + data[at:]
    ogg_pages(data)


@fuzz("Opus packets", packets=st.lists(mutated(*_PACKETS), min_size=1, max_size=5))
def test_an_opus_packet_is_sound_or_an_error(packets: list[bytes]) -> None:
    opus_packets(SEPARATOR.join(packets))


@fuzz("pieces of PCM and G.711", head=st.binary(min_size=2, max_size=2), pieces=st.lists(
    st.one_of(st.binary(max_size=600), st.integers(0, 200_000).map(bytes)), max_size=5))
def test_a_piece_is_samples_that_the_codec_can_take_or_an_error(head: bytes, pieces: list[bytes]) -> None:
    sound_pieces(head + SEPARATOR.join(pieces))


@fuzz("sound of Realtime", pieces=st.lists(st.binary(max_size=500), max_size=8))
def test_a_feed_takes_any_bytes_in_any_format(pieces: list[bytes]) -> None:
    realtime_sound(SEPARATOR.join(pieces))
