"""Opus packets, there and back."""

from __future__ import annotations

import gc

import numpy as np
import psutil
import pytest

from services.gateway.edges.opus import CODED_HERTZ, OpusDecoder, OpusEncoder
from services.mesh.errors import InvalidRequest
from tests.gateway.edges.sounds import likeness, speech


@pytest.mark.parametrize("rate", CODED_HERTZ)
@pytest.mark.parametrize("packet_ms", [2.5, 5, 10, 20, 40, 60, 80])
def test_what_was_encoded_sounds_the_same_when_it_is_decoded(rate: int, packet_ms: float) -> None:
    encoder, decoder = OpusEncoder(rate), OpusDecoder(rate)
    said, size = speech(rate, 0.96), round(rate * packet_ms / 1000)
    packets = [encoder.encode(said[at:at + size]) for at in range(0, len(said), size)]
    heard = np.concatenate([decoder.decode(packet) for packet in packets])
    assert len(heard) == len(said)
    assert likeness(said[:len(said) - encoder.lookahead], heard[encoder.lookahead:]) > 0.9


def test_a_packet_is_decoded_at_the_rate_that_the_listener_wants() -> None:
    encoder, decoder = OpusEncoder(48000), OpusDecoder(24000)
    assert len(decoder.decode(encoder.encode(speech(48000, 0.02)))) == 480


def test_slices_and_other_layouts_of_samples_are_encoded_as_they_are() -> None:
    said = speech(24000, 0.08)
    assert OpusEncoder(24000).encode(np.repeat(said, 2)[::2]) == OpusEncoder(24000).encode(said)


@pytest.mark.parametrize("packet", [b"", b"\xff" * 3, b"\x7f" + bytes(1), b"garbage, and a lot of it" * 100])
def test_what_is_not_opus_is_refused_and_the_stream_goes_on(packet: bytes) -> None:
    decoder = OpusDecoder(24000)
    with pytest.raises(InvalidRequest) as refused:
        decoder.decode(packet)
    assert refused.value.reason == "BAD_OPUS"
    assert len(decoder.decode(OpusEncoder(24000).encode(speech(24000, 0.02)))) == 480


def test_random_bytes_never_do_harm() -> None:
    random, decoder = np.random.default_rng(1), OpusDecoder(24000)
    for length in random.integers(1, 2000, 500):
        try:
            heard = decoder.decode(random.bytes(int(length)))
        except InvalidRequest:
            continue
        assert 0 < len(heard) <= 2880


def test_streams_that_nobody_holds_take_no_memory() -> None:
    def rounds(count: int) -> int:
        for _ in range(count):
            OpusDecoder(24000).decode(OpusEncoder(24000).encode(np.zeros(480, np.float32)))
        gc.collect()
        memory: int = psutil.Process().memory_info().rss
        return memory

    before = rounds(50)
    assert rounds(1000) - before < 8 << 20  # they would be 45 MB
