"""The calls of this process as others can resume them: a record and a journal of each, in Redis (docs/sessions.md).

The audio path never waits for Redis. Each session keeps its history in memory anyway; one task writes what is new of
all sessions, twice a second. While Redis is away the histories grow on, up to the model's context, and when it is
back, or another one has taken its place, the journals are written anew.

A session has one owner. Taking it over raises its fencing token; what an earlier owner writes after that is refused
(https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from services.gateway.sessions import journal
from services.gateway.sessions.journal import Session
from services.gateway.sessions.records import Record, keys_of, open_record
from services.gateway.sessions.sealing import Handle
from services.gateway.store import Request, RequestRefused, Store, StoreAway
from services.mesh.errors import ResumeUnavailable, UnknownSession

log = logging.getLogger(__name__)

WRITE_EVERY_S = 0.5  # a lost gateway has not written this much; the caller sends that audio again
SLICES = 5  # the sessions are written in turns, so that a hundred of them never hold up the event loop together
MOST_READS = 5  # of a session that is resumed; its owner writes twice a second, so even a second time is rare
_ELSEWHERE = "the conversation is being resumed or written elsewhere at this moment; retry"

Checked = TypeVar("Checked")

# Returns nothing for a session that is not there or has ended; else revision, fence, owner, what is sealed, and the
# journal.
_READ = """
local facts = redis.call('HGET', KEYS[1], 'facts')
if not facts then return false end
return {redis.call('HGET', KEYS[1], 'revision'), redis.call('HGET', KEYS[1], 'fence'),
        redis.call('HGET', KEYS[1], 'owner'), facts, redis.call('LRANGE', KEYS[2], 0, -1)}
"""

# Returns nothing for a session that is not there or has ended; else the gateway that holds it, empty for none.
_HOLDER = """
if not redis.call('HGET', KEYS[1], 'facts') then return false end
return redis.call('HGET', KEYS[1], 'state') == 'live' and redis.call('HGET', KEYS[1], 'owner') or ''
"""

# Returns the new fencing token; nothing when the session has changed since it was read: it has ended, another gateway
# has it, or, unless the revision is empty, its owner has written more.
_TAKE_OVER = """
if not redis.call('HGET', KEYS[1], 'facts') or redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1]
   or redis.call('HGET', KEYS[1], 'owner') ~= ARGV[2] then return false end
if ARGV[3] ~= '' and redis.call('HGET', KEYS[1], 'revision') ~= ARGV[3] then return false end
redis.call('HINCRBY', KEYS[1], 'revision', 1)
redis.call('HSET', KEYS[1], 'owner', ARGV[4], 'state', 'live')
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return redis.call('HINCRBY', KEYS[1], 'fence', 1)
"""


@dataclass(frozen=True)
class Seen:
    """What a session was like when it was read."""

    revision: bytes
    """Counts writes."""
    fence: bytes
    owner: bytes


class Sessions:
    """The sessions of this gateway, and the way to those that another one has left."""

    def __init__(self, store: Store, owner: str, grace_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """`owner` names this gateway. A session can be resumed for `grace_s` after its gateway's last write."""
        self.store, self.grace_s = store, grace_s
        self._owner, self._now = owner, now
        self._live: dict[str, Session] = {}
        self._closing = False
        self._wake = asyncio.Event()
        self._hurry: set[str] = set()  # names of sessions that are to be written at once
        self._writer = asyncio.create_task(self._write_forever())
        store.on_change.add(self._tell)

    @staticmethod
    def probes(tag: str) -> list[Request]:
        """What is done to sessions, for Store.connect."""
        keys, (anew, append, gone) = keys_of(f"probe-{tag}"), journal.probes(tag)
        return [anew, append, Request(_READ, keys), Request(_HOLDER, keys), gone,
                Request(_TAKE_OVER, keys, (1, tag, "", tag, 1000))]

    def create(self, handle: Handle, record: Record) -> Session:
        """A new session, written soon."""
        return self._add(handle, record, 1)

    async def resume(self, handle: Handle, check: Callable[[Record], Awaitable[Checked]]) -> tuple[Session, Checked]:
        """The session that was cut off, and what `check` returned. From now on the session is this gateway's, and a
        call that still holds it ends.

        `check` sees the session first, may forget steps of its history, and refuses it by raising: then the session
        stays as it was, with its owner. It sees the session again if that has changed meanwhile.

        Raises:
            UnknownSession: Redis does not have it (any more).
            ResumeIncompatible: a gateway of another version has written it.
            ResumeUnavailable: Redis does not answer, or refuses.
        """
        for _ in range(MOST_READS):
            seen, record = await self.read(handle)
            checked = await check(record)
            if (session := await self._take(handle, seen, seen.revision, record)) is not None:
                return session, checked
        raise ResumeUnavailable(_ELSEWHERE)

    async def take_over(self, handle: Handle, seen: Seen, record: Record) -> Session:
        """The session of a caller that has got no answer after the steps of `record`, which was read from it. From now
        on it is this gateway's, and a call that still holds it ends. What its owner has written since it was read is
        forgotten: the caller says it again.

        Raises ResumeUnavailable when it has ended or moved since it was read, and as resume does.
        """
        if (session := await self._take(handle, seen, b"", record)) is None:
            raise ResumeUnavailable(_ELSEWHERE)
        return session

    async def _take(self, handle: Handle, seen: Seen, revision: bytes, record: Record) -> Session | None:
        fence = await self._run(Request(_TAKE_OVER, keys_of(handle.name), (
            seen.fence, seen.owner, revision, self._owner, round(self.grace_s * 1000))))
        if fence is None:
            return None
        if (old := self._live.get(handle.name)) is not None:
            old.lose("again")
        return self._add(handle, record, fence)

    async def forget(self, handle: Handle) -> None:
        """End the session, wherever it is held, and erase what was said in it. Raises as resume does."""
        async def as_it_is(record: Record) -> None:
            """There is nothing to check."""

        session, _ = await self.resume(handle, as_it_is)
        session.end("forgotten", keep=False)
        if await self._run(session.next_write(self._owner, self.grace_s).request) == "moved":
            raise ResumeUnavailable("the conversation was resumed at this moment; forget it again")

    @property
    def open(self) -> int:
        """Sessions that go on here; those that have ended and are yet to be written do not count."""
        return sum(not session.ended for session in self._live.values())

    @property
    def lag_s(self) -> float:
        """The age of the oldest last write, among sessions that have something new to write."""
        return max((session.lag_s for session in list(self._live.values())), default=0.0)

    async def close(self) -> None:
        """Write what is left, if Redis is there."""
        self.store.on_change.discard(self._tell)
        self._closing = True
        self._wake.set()
        await self._writer
        with contextlib.suppress(StoreAway):
            await self._write(list(self._live.values()))

    async def read(self, handle: Handle) -> tuple[Seen, Record]:
        """The session as it was last written. Raises as resume does."""
        unknown = UnknownSession("no conversation has this resume handle; it has ended, or was cut off more than "
                                 f"{self.grace_s:.0f} s ago")
        found = await self._run(Request(_READ, keys_of(handle.name)))
        if found is None:
            raise unknown
        revision, fence, owner, facts, chunks = found
        try:
            return Seen(revision, fence, owner), open_record(handle, facts, chunks)
        except ValueError as error:
            log.error("the journal of a session can't be read: %s", error)
            raise unknown from None

    async def holder(self, name: str) -> str | None:
        """The gateway that holds the session of this name, or held it when it was last written; None when it was cut
        off. Raises UnknownSession, ResumeUnavailable.
        """
        found = await self._run(Request(_HOLDER, keys_of(name)))
        if found is None:
            raise UnknownSession(f"this conversation has ended, or was cut off more than {self.grace_s:.0f} s ago")
        return found.decode() or None

    async def _run(self, request: Request) -> Any:
        try:
            return await self.store.run(request)
        except StoreAway:
            raise ResumeUnavailable("Redis does not answer, so no conversation can be resumed now; retry") from None
        except RequestRefused as error:
            raise ResumeUnavailable(f"Redis refuses ({error.code}), so this conversation can't be resumed now; retry"
                                    ) from None

    def _add(self, handle: Handle, record: Record, fence: int) -> Session:
        def flush() -> None:
            self._hurry.add(handle.name)
            self._wake.set()

        session = Session(handle, record, fence, self.store.available, flush, self._now)
        self._live[handle.name] = session
        session.flush_soon()
        return session

    def _tell(self, available: bool) -> None:
        if not available:  # a session that is there again says so when it has been written
            for session in self._live.values():
                session.unreachable()

    async def _write_forever(self) -> None:
        for turn in itertools.cycle(range(SLICES)):
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._wake.wait(), WRITE_EVERY_S / SLICES)
            if self._closing:
                return
            self._wake.clear()
            hurry, self._hurry = self._hurry, set()
            due = [session for number, (name, session) in enumerate(self._live.items())
                   if name in hurry or number % SLICES == turn]
            try:
                await self._write(due)
            except StoreAway:
                await asyncio.sleep(WRITE_EVERY_S)
            except Exception:
                log.exception("sessions could not be written")

    async def _write(self, sessions: list[Session]) -> None:
        due = [session for session in sessions if session.due]
        writes = [session.next_write(self._owner, self.grace_s) for session in due]
        try:
            answers = await self.store.run_all([write.request for write in writes])
            for session, write, answer in zip(due, writes, answers, strict=True):
                if isinstance(answer, RequestRefused):
                    session.refused()
                else:
                    session.written(write, answer.decode())
        finally:
            self._live = {name: session for name, session in self._live.items() if not session.finished}
