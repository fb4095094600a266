"""Ogg/Opus streams, against sphn: what Moshi's own servers and clients read and write with."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import sphn

from services.gateway.edges.ogg import OggOpusReader, OggOpusWriter, OggReader, checksum
from services.mesh.errors import InvalidRequest
from tests.gateway.edges.sounds import likeness, speech

RATE = 24_000


def heard_of(pieces: list[bytes], reader: OggOpusReader | None = None) -> np.ndarray:
    """The samples of a stream that comes in these pieces."""
    reader = reader or OggOpusReader(RATE)
    decoded = [reader.decode(packet) for piece in pieces for packet in reader.packets(piece)]
    return np.concatenate([pcm for pcm in decoded if pcm is not None] or [np.zeros(0, np.float32)])


def pages_by_sphn(said: np.ndarray, samples: int) -> list[bytes]:
    writer = sphn.OpusStreamWriter(RATE)
    return [writer.append_pcm(said[at:at + samples]) for at in range(0, len(said), samples)]


def page(*packets: bytes, serial: int = 1, flags: int = 0, lengths: bytes | None = None) -> bytes:
    """An Ogg page of whole packets, or with segments of these lengths."""
    if lengths is None:
        lengths = b"".join(bytes([255] * (len(one) // 255) + [len(one) % 255]) for one in packets)
    header = struct.pack("<4sBBqIII", b"OggS", 0, flags, 0, serial, 0, 0)
    whole = bytearray(header + bytes([len(lengths)]) + lengths + b"".join(packets))
    whole[22:26] = checksum(bytes(whole)).to_bytes(4, "little")
    return bytes(whole)


@pytest.mark.parametrize("packet_ms", [10, 20, 40, 80])
def test_what_moshis_clients_write_is_read(packet_ms: int) -> None:
    said = speech(RATE, 1.6)
    heard = heard_of(pages_by_sphn(said, RATE * packet_ms // 1000))
    assert len(heard) == len(said)
    assert max(likeness(said[:len(said) - late], heard[late:]) for late in range(100, 220, 4)) > 0.9


@pytest.mark.parametrize("packet_ms", [20, 40, 80])
def test_moshis_clients_read_what_is_written(packet_ms: int) -> None:
    writer, reader, said = OggOpusWriter(RATE, packet_ms), sphn.OpusStreamReader(RATE), speech(RATE, 1.6)
    pages = [page for at in range(0, len(said), 1920) for page in writer.write(said[at:at + 1920])]
    heard = np.concatenate([reader.append_bytes(page) for page in pages])
    assert len(heard) == len(said) and len(pages) == 1600 // packet_ms
    assert likeness(said[:-60], heard[60:]) > 0.9


def test_the_headers_come_right_before_the_first_page_in_one_piece() -> None:
    writer = OggOpusWriter(RATE, 80)
    first, second = writer.write(speech(RATE, 0.16))
    assert first.count(b"OggS") == 3 and first.find(b"OpusHead") > 0 and first.find(b"OpusTags") > 0
    assert second.count(b"OggS") == 1


def test_samples_that_fill_no_packet_wait_for_more() -> None:
    writer = OggOpusWriter(RATE, 40)
    assert [len(list(writer.write(np.zeros(640, np.float32)))) for _ in range(6)] == [0, 1, 1, 0, 1, 1]


@pytest.mark.parametrize("cut", [1, 7, 100, 5000])
def test_bytes_may_be_cut_anywhere(cut: int) -> None:
    pages = pages_by_sphn(speech(RATE, 0.8), 1920)
    stream = b"".join(pages)
    pieces = [stream[at:at + cut] for at in range(0, len(stream), cut)]
    assert np.array_equal(heard_of(pieces), heard_of(pages))


def test_several_packets_may_be_in_a_page_and_a_packet_in_several_pages() -> None:
    head, tags, *packets = list(OggReader().packets(b"".join(pages_by_sphn(speech(RATE, 0.4), 1920))))
    assert len(packets) == 10
    expected = heard_of([page(head, flags=2), page(tags), *map(page, packets)])
    assert np.array_equal(heard_of([page(head, flags=2) + page(tags) + page(*packets)]), expected)
    first = packets[0].ljust(300, b"\0")  # padding that a decoder never sees: only the cut is looked at
    cut = [page(head, flags=2), page(first[:255], lengths=b"\xff"), page(first[255:], packets[1], flags=1)]
    assert list(OggReader().packets(b"".join(cut))) == [head, first, packets[1]]


def test_the_end_of_a_packet_whose_begin_never_came_is_let_go_of() -> None:
    assert list(OggReader().packets(page(b"head", flags=2) + page(b"end", b"next", flags=1))) == [b"head", b"next"]


def test_pages_of_other_streams_are_let_go_of_and_a_stream_may_begin_anew() -> None:
    reader = OggReader()
    one = page(b"one", flags=2) + page(b"other", serial=2) + page(b"two")
    assert list(reader.packets(one)) == [b"one", b"two"]
    assert list(reader.packets(page(b"new", serial=3, flags=2) + page(b"old") + page(b"more", serial=3))) == [
        b"new", b"more"]


def test_a_stream_that_begins_anew_is_decoded_anew() -> None:
    pages = pages_by_sphn(speech(RATE, 0.4), 1920)
    reader = OggOpusReader(RATE)
    first = heard_of(pages, reader)
    assert np.array_equal(heard_of(pages_by_sphn(speech(RATE, 0.4), 1920), reader), first)


HEAD = struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, 312, 48000, 0, 0)


@pytest.mark.parametrize(("stream", "why"), [
    (b"garbage", "not an Ogg stream"),
    (page(HEAD, flags=2) + b"between", "not an Ogg stream"),
    (page(HEAD, flags=2)[:-1] + b"x", "checksum"),
    (page(b"\xfc" + bytes(100), flags=2), "header"),
    (page(b"OpusHead", flags=2), "cut"),
    (page(HEAD[:9] + b"\x06" + HEAD[10:], flags=2), "6 channels"),
    (page(HEAD[:18] + b"\x01", flags=2), "channel mapping 1"),
    (page(HEAD, flags=2) + page(b"\xff\xff\xff"), "not Opus"),
    (page(HEAD, flags=2) + page(bytes(65025), lengths=b"\xff" * 255), "longer than"),
])
def test_what_is_not_an_opus_stream_is_refused_with_the_reason(stream: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        heard_of([stream])
    assert refused.value.reason == "BAD_OPUS"


def test_the_gain_of_the_header_is_applied() -> None:
    packets = list(OggReader().packets(b"".join(pages_by_sphn(speech(RATE, 0.4), 1920))))[2:]
    louder = HEAD[:16] + struct.pack("<h", 6 * 256) + HEAD[18:]
    plain, loud = (heard_of([page(head, flags=2), *map(page, packets)]) for head in (HEAD, louder))
    assert np.abs(loud).max() == pytest.approx(2 * np.abs(plain).max(), rel=0.01)


def test_no_more_is_kept_than_a_page() -> None:
    reader = OggReader()
    whole = page(bytes(60_000), flags=2)
    for at in range(0, len(whole) - 1, 1000):
        assert not list(reader.packets(whole[at:min(at + 1000, len(whole) - 1)]))
    assert len(reader._page) == len(whole) - 1
    assert len(list(reader.packets(whole[-1:] + whole[:100]))) == 1 and len(reader._page) == 100
