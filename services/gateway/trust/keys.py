"""API keys: a file that has their hashes, names and limits, read again when it changes.

A key is 32 random bytes, so a fast hash is enough: nobody finds the key of a hash by trying, as with a password that
people choose (https://pages.nist.gov/800-63-4/sp800-63b.html speaks of "look-up secrets" with 112 bits or more).
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.gateway.calls.callers import CallerLimits

log = logging.getLogger(__name__)

PREFIX = "mm_"  # so that scanners for secrets, and people, know one when they see it
LOOK_S = 1.0  # how soon a change of the file is noticed


class KeyRecord(BaseModel):
    """One key, as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    calls: int | None = Field(None, ge=0, description="at once")
    calls_per_minute: int | None = Field(None, ge=0)
    audio_s_per_hour: int | None = Field(None, ge=0)

    def limits(self, defaults: CallerLimits) -> CallerLimits:
        """What its callers may do; what the file leaves out is the default."""
        def one(own: int | None, default: int) -> int:
            return default if own is None else own

        return CallerLimits(one(self.calls, defaults.calls), one(self.calls_per_minute, defaults.calls_per_minute),
                            one(self.audio_s_per_hour, defaults.audio_s_per_hour))


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[KeyRecord]


def new_key() -> str:
    """A key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """What the file has of a key. A header may have any bytes, which aiohttp hands on as surrogates."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def read_keys(path: Path) -> list[KeyRecord]:
    """The keys of a file. Raises ValueError with one line that names the file and no hash."""
    try:
        records = _File.model_validate(json.loads(path.read_text())).keys
    except OSError as error:
        raise ValueError(f"--keys-file: {path} can't be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        where = ""
        if isinstance(error, ValidationError):
            first = error.errors(include_input=False)[0]
            where = f": {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise ValueError(f"--keys-file: {path} is not a file of keys{where}; `make key` makes one") from None
    if len({record.name for record in records}) < len(records):
        raise ValueError(f"--keys-file: {path} has two keys of one name")
    return records


class KeyFile:
    """The keys of a file, as it is now."""

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError for a file that can't be used."""
        self._path, self._now = path, now
        self._looked_at = now()
        self._signature = self._sign()
        self._take(read_keys(path))

    def find(self, key: str) -> KeyRecord | None:
        """The record of a key, if there is one."""
        self._look()
        return self._by_hash.get(hash_of(key))

    def holds(self, sha256: str) -> bool:
        """Whether the key with this hash is still there. Not by name: a key that leaked is replaced under its name."""
        self._look()
        return sha256 in self._by_hash

    def _look(self) -> None:
        """Take what the file has now. One that can't be read leaves the keys as they were, with one line in the log."""
        if self._now() - self._looked_at < LOOK_S:
            return
        self._looked_at = self._now()
        signature = self._sign()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._take(read_keys(self._path))
        except ValueError as error:
            log.error("%s; the keys that were read before stay in use", error)
            return
        log.info("%d API keys were read from %s", len(self._by_hash), self._path)

    def _take(self, records: list[KeyRecord]) -> None:
        self._by_hash = {record.sha256: record for record in records}

    def _sign(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (stat.st_mtime_ns, stat.st_ino, stat.st_size)
