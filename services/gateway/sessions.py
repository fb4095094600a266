"""Session records in Redis.

The audio path never waits for Redis: what changes is noted here at once and written by a task of its own, the newest
state of each session in one round trip. While Redis is away the notes wait, at most MAX_NOTES of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import redis.asyncio as redis
from redis.exceptions import RedisError

from services.mesh.errors import PeerLost

log = logging.getLogger(__name__)

WRITE_EVERY_S = 0.5
LIVE_TTL_S = 3600  # refreshed by every write of a running call
ENDED_TTL_S = 600  # long enough to ask support about it
MAX_NOTES = 10_000  # sessions whose state waits for Redis: a few MB
ANSWER_S = 2.0  # a Redis that takes longer is treated as away


def record_key(session_id: str) -> str:
    """Where a session's record is; the braces keep all keys of a session on one node of a cluster."""
    return f"moshimesh:{{{session_id}}}:session"


class SessionStore:
    """Writes the records of this gateway's sessions."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S,
                                           decode_responses=True)
        self._place = url.rpartition("@")[2]  # without the password
        self._notes: dict[str, dict[Any, Any]] = {}  # as redis-py types a hash
        self._away = False
        self._writer: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Start writing. Raises PeerLost when Redis does not answer."""
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            raise PeerLost(f"Redis at {self._place} can't be reached ({error}); start it, or name another one with "
                           "--redis-url") from None
        self._writer = asyncio.create_task(self._write_forever())

    def note(self, session_id: str, **changes: str | int | float) -> None:
        """Remember what changed about a session; it is written soon."""
        if session_id not in self._notes and len(self._notes) >= MAX_NOTES:
            log.warning("Redis is away for too long: the record of session %s is lost", session_id)
            return
        self._notes.setdefault(session_id, {}).update(changes, updated=round(time.time(), 3))

    async def close(self) -> None:
        """Write what is left, if Redis is there."""
        if self._writer is not None:
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer
            await self._write()
        await self._redis.aclose()

    async def _write_forever(self) -> None:
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self._write()

    async def _write(self) -> None:
        notes, self._notes = self._notes, {}
        if not notes:
            return
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for session_id, changes in notes.items():
                    pipe.hset(record_key(session_id), mapping=changes)
                    pipe.expire(record_key(session_id), ENDED_TTL_S if "ended" in changes else LIVE_TTL_S)
                await pipe.execute()
        except (RedisError, OSError, asyncio.CancelledError) as error:
            for session_id, changes in notes.items():  # what was noted meanwhile is newer
                self._notes[session_id] = changes | self._notes.get(session_id, {})
            if isinstance(error, asyncio.CancelledError):  # by `close`, which writes them
                raise
            if not self._away:
                log.warning("Redis is away (%s); calls go on, their records are written when it is back", error)
            self._away = True
        else:
            if self._away:
                log.info("Redis is back; %d session records written", len(notes))
            self._away = False
