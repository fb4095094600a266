"""The resume handle: a secret that only the caller holds. The key that seals the conversation in Redis comes from it.

What is derived from it (HKDF, RFC 5869) does not lead back to it: the name under which the session is kept, which
Redis sees, the key that seals it (AES-256-GCM), which never leaves the process, and what signs grants (grants.py). A
reader of Redis learns neither what was said nor how to resume a conversation.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.mesh.errors import UnknownSession

SECRET_BYTES = 32
NONCE_BYTES = 12  # random for each chunk: 2^32 of them are safe under one key, a call has some thousands


class Handle:
    """One conversation's secret."""

    def __init__(self, text: str) -> None:
        """Raises UnknownSession for a text that can't be a handle."""
        try:
            secret = base64.b64decode(text + "=", altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if len(secret) != SECRET_BYTES:
            raise UnknownSession("this is no resume handle")
        self.text = text
        self.name = _derive(secret, b"name", 16).hex()
        self._secret = secret
        self._cipher = AESGCM(_derive(secret, b"key", 32))

    @classmethod
    def new(cls) -> Handle:
        """A new handle."""
        return cls(base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).decode().rstrip("="))

    def seal(self, data: bytes, kind: bytes) -> bytes:
        """Data that only `open` with the same handle and kind can read."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, kind)

    def sign(self, data: bytes, kind: bytes) -> bytes:
        """What only who has the handle can make of data, 32 bytes."""
        return _derive(self._secret, kind + b" " + data, 32)

    def open(self, sealed: bytes, kind: bytes) -> bytes:
        """What was sealed. Raises ValueError when it was sealed otherwise, or changed since."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], kind)
        except (InvalidTag, ValueError):
            raise ValueError("sealed with another handle, or damaged") from None


def _derive(secret: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=b"moshimesh " + purpose).derive(secret)
