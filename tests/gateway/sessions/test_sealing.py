"""Handles: what is sealed with one is readable with it alone, and nothing leads back to it."""

from __future__ import annotations

import pytest

from services.gateway.sessions.sealing import Handle
from services.mesh.errors import UnknownSession


def test_a_handle_leads_to_one_name_and_one_key() -> None:
    handle, other = Handle.new(), Handle.new()
    same = Handle(handle.text)
    assert (same.name, len(handle.text)) == (handle.name, 43)
    assert handle.name != other.name and handle.text not in handle.name
    assert same.open(handle.seal(b"data", b"kind"), b"kind") == b"data"


def test_names_and_keys_do_not_change_between_versions() -> None:
    """Another gateway, perhaps of another version, finds the session and opens it."""
    handle = Handle("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")
    assert handle.name == "a75fea50365b62fd7fb49d03459d6b0c"
    sealed = bytes.fromhex(
        "5c7a69bea58ec5e357ae8e49b83e294d66c310e4e4b086811acd6f97b96d444a69257f120cc23fcccf9b9a108c26af")
    assert handle.open(sealed, b"facts") == b"sealed by version 1"


def test_what_is_sealed_opens_in_its_place_only() -> None:
    handle = Handle.new()
    sealed = handle.seal(b"data", b"kind")
    flipped = bytes([sealed[-1] ^ 1])
    for reader, kind, data in ((Handle.new(), b"kind", sealed), (handle, b"other", sealed),
                               (handle, b"kind", sealed[:-1]), (handle, b"kind", sealed[:-1] + flipped),
                               (handle, b"kind", b"")):
        with pytest.raises(ValueError, match="sealed with another handle"):
            reader.open(data, kind)


def test_sealing_the_same_twice_gives_two_texts() -> None:
    handle = Handle.new()
    assert len({handle.seal(b"data", b"kind") for _ in range(100)}) == 100


@pytest.mark.parametrize("text", ["", "x", "A" * 42, "A" * 44, "=" * 43, "ü" * 43, "A" * 43 + "\n"])
def test_what_is_no_handle(text: str) -> None:
    with pytest.raises(UnknownSession):
        Handle(text)
