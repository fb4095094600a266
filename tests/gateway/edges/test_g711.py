"""G.711 against published values, and against Python's own where it still has them."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from services.gateway.edges.g711 import A_LAW, MU_LAW, Law

ALL_SAMPLES = np.arange(-32768, 32768)
ALL_BYTES = bytes(range(256))


def values(law: Law, data: bytes) -> list[int]:
    return (law.decode(data) * 32768).astype(int).tolist()


def test_published_values_of_mu_law() -> None:
    """Table 2a and 2b of G.711, times four: 14 bits there, 16 here."""
    assert values(MU_LAW, bytes([0x80, 0x8F, 0x90, 0xFE, 0xFF, 0x7F, 0x00])) == [
        4 * value for value in (8031, 4191, 3999, 2, 0, 0, -8031)]


def test_published_values_of_a_law() -> None:
    """Table 1a and 1b of G.711, times eight: 13 bits there, 16 here; even bits are inverted on the wire."""
    assert values(A_LAW, bytes(bits ^ 0x55 for bits in (0xFF, 0xF0, 0x80, 0x00, 0x7F))) == [
        8 * value for value in (4032, 2112, 1, -1, -4032)]


@pytest.mark.parametrize("law", [MU_LAW, A_LAW])
def test_what_was_decoded_is_encoded_to_the_same_byte(law: Law) -> None:
    back = bytearray(law.encode(law.decode(ALL_BYTES)))
    if law is MU_LAW:
        assert back[0x7F] == 0xFF  # both are zero
        back[0x7F] = 0x7F
    assert bytes(back) == ALL_BYTES


@pytest.mark.parametrize("law", [MU_LAW, A_LAW])
def test_what_is_too_loud_is_clipped(law: Law) -> None:
    assert law.encode(np.array([2.0, -2.0], np.float32)) == law.encode(np.array([0.99997, -1.0], np.float32))


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python has no audioop")
@pytest.mark.parametrize(("law", "name"), [(MU_LAW, "ulaw"), (A_LAW, "alaw")])
def test_every_value_is_as_in_audioop(law: Law, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        audioop: Any = importlib.import_module("audioop")
    decoded = np.frombuffer(getattr(audioop, f"{name}2lin")(ALL_BYTES, 2), "<i2")
    assert values(law, ALL_BYTES) == decoded.tolist()
    samples = (ALL_SAMPLES / 32768).astype(np.float32)
    assert law.encode(samples) == getattr(audioop, f"lin2{name}")(ALL_SAMPLES.astype("<i2").tobytes(), 2)
