"""Looks for secrets where none may be: logs, Redis, spans, metrics, and the arguments of processes.

A secret is also found in the shapes in which something else may have kept it: base64, hexadecimal, quoted for a URL.
Its first half is looked for, too: a line that was cut off after 40 characters shows enough of it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

SHORTEST = 12  # below that a half of a secret is found anywhere


def secrets_found(secrets: Mapping[str, str | bytes], places: Mapping[str, str | bytes]) -> list[str]:
    """Which of the secrets, by name, are in which of the places: "the key in the log". Never the secret itself."""
    found = []
    for place, text in places.items():
        data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
        found += [f"{name} in {place}" for name, secret in secrets.items()
                  if any(shape in data for shape in _shapes(secret))]
    return found


def _shapes(secret: str | bytes) -> set[bytes]:
    if len(secret) < 2 * SHORTEST:
        raise ValueError(f"a secret of {len(secret)} characters or bytes would be found by chance")
    raw = secret.encode() if isinstance(secret, str) else secret
    half = raw[:len(raw) // 2]
    # Whole groups of three bytes, so that what follows does not change them.
    encoded = base64.b64encode(half[:len(half) // 3 * 3])
    return {raw, half, encoded, encoded.translate(bytes.maketrans(b"+/", b"-_")), half.hex().encode(),
            quote(raw, safe="").encode(), repr(raw)[2:-1].encode()}


def of_redis(client: Any) -> bytes:
    """Everything in a Redis as it is: names and values of all keys, whatever their type."""
    parts: list[bytes] = []
    for key in client.scan_iter():
        parts.append(key)
        kind = client.type(key)
        if kind == b"string":
            parts.append(client.get(key) or b"")
        elif kind == b"hash":
            parts += [part for pair in client.hgetall(key).items() for part in pair]
        elif kind == b"list":
            parts += client.lrange(key, 0, -1)
        elif kind == b"zset":
            parts += [member for member, _ in client.zrange(key, 0, -1, withscores=True)]
        elif kind == b"set":
            parts += client.smembers(key)
        else:
            raise ValueError(f"a key of type {kind.decode()}, which nothing here reads")
    return b"\n".join(parts)


def of_processes(pids: Iterable[int]) -> bytes:
    """What `ps` shows of these processes: their arguments. Linux."""
    return b"\n".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
