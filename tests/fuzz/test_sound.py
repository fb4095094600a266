"""Sound in every shape that a caller may send it."""

from __future__ import annotations

import contextlib

import numpy as np
from hypothesis import strategies as st

from services.gateway.edges import pcm
from services.gateway.edges.ogg import OggOpusReader, OggOpusWriter, checksum
from services.gateway.edges.opus import OpusDecoder, OpusEncoder, packet_ms
from services.gateway.edges.resampling import RATES_HERTZ, Resampler
from services.gateway.edges.web.realtime.feed import Feed
from services.gateway.edges.web.realtime.settings import A_LAW, MU_LAW, PCM, Format
from services.gateway.edges.web.realtime.sound import ear_of
from services.mesh.errors import InvalidRequest
from services.mesh.samples import LOUDEST, check_samples
from tests.fuzz.budget import fuzz
from tests.fuzz.inputs import mutated

RATE = 24_000
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
    reader, at = OggOpusReader(RATE), 0
    data = mended(data) if mend else data
    with contextlib.suppress(InvalidRequest):
        for size in [*cuts, len(data)]:
            for packet in reader.packets(data[at:at + size]):
                if not packet.startswith((b"OpusHead", b"OpusTags")):
                    assert 0 < packet_ms(packet) <= 120
                sound = reader.decode(packet)
                assert sound is None or (sound.dtype == np.float32 and len(sound) <= RATE * 0.12)
            at += size


@fuzz("Opus packets", packets=st.lists(mutated(*_PACKETS), min_size=1, max_size=5))
def test_an_opus_packet_is_sound_or_an_error(packets: list[bytes]) -> None:
    decoder = OpusDecoder(RATE)
    for packet in packets:
        with contextlib.suppress(InvalidRequest):
            sound = decoder.decode(packet)
            assert len(sound) <= RATE * 0.12 and sound.dtype == np.float32


@fuzz("pieces of PCM and G.711", format=st.sampled_from([pcm.S16LE, pcm.F32LE, pcm.G711_MU_LAW, pcm.G711_A_LAW]),
      rate=st.sampled_from(RATES_HERTZ), pieces=st.lists(st.one_of(
          st.binary(max_size=600), st.integers(0, 200_000).map(bytes)), max_size=5))
def test_a_piece_is_samples_that_the_codec_can_take_or_an_error(format: pcm.Format, rate: int, pieces: list[bytes]
                                                                ) -> None:
    reader = pcm.Pieces(format, rate)
    resampler = Resampler(rate, RATE) if rate != RATE else None
    with contextlib.suppress(InvalidRequest):
        for piece in pieces:
            sound = reader.decode(piece)
            if resampler is not None:
                with np.errstate(all="ignore"):
                    sound = resampler.resample(sound)
            if len(sound):
                check_samples(sound, "audio")
                assert np.abs(sound).max() <= LOUDEST
                format.encode(sound)


@fuzz("sound of Realtime", pieces=st.lists(st.tuples(
    st.sampled_from([Format(), Format(PCM, 8000), Format(PCM, 44_100), Format(MU_LAW, 8000), Format(A_LAW, 8000)]),
    st.binary(max_size=500)), max_size=8))
def test_a_feed_takes_any_bytes_in_any_format(pieces: list[tuple[Format, bytes]]) -> None:
    clock = [100.0]
    feed = Feed(ear_of(RATE), 1920, 0.08, lambda: clock[0])
    feed.start()
    for format, data in pieces:
        feed.take(data, format)
        clock[0] += 0.1
        due = feed.next()
        assert isinstance(due, float) or due.dtype == np.float32
