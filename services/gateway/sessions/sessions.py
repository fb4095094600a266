"""What outlives this process about its calls: a record and a journal of each, in Redis (docs/sessions.md).

The audio path never waits for Redis. Each session keeps its history in memory anyway; a task of its own appends what is
new of it to the journal, twice a second. While Redis is away the histories go on growing to the model's context, and
when it is back, or another one has taken its place, the journals are written anew.

A session has one owner. Taking it up raises its fencing token, and what an earlier owner writes is refused from then on
(https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import struct
import time
from collections import deque
from collections.abc import Callable

from moshimesh.lm.v1 import lm_pb2

from services.gateway.sessions.history import History
from services.gateway.sessions.sealing import Handle
from services.gateway.store import Request, Store, StoreAway
from services.mesh.errors import MeshError, ResumeUnavailable, SessionMoved, UnknownSession

log = logging.getLogger(__name__)

WRITE_EVERY_S = 0.5  # what a lost gateway may not have written; the caller's own audio covers it
SLICES = 5  # the sessions are written in turns, so that a hundred of them never hold up the event loop together
ENDED_TTL_S = 600  # long enough to ask support about it
FORGET_S = 120.0  # how long a session that has ended waits for Redis to be back: some 100 kB each
FACTS, CHUNK = b"facts", b"chunk"  # what is sealed is bound to its place
_LENGTH, _TIME = struct.Struct("<H"), struct.Struct("<d")

# The record of a session is a hash, its journal a list of sealed chunks. Returns "ok"; "moved" when somebody else owns
# the session; "again" when the journal is not what its owner thinks, as after a fail-over: then it is written anew.
_WRITE = """
local held, owner = tonumber(redis.call('HGET', KEYS[1], 'fence')), redis.call('HGET', KEYS[1], 'owner')
local mine, mode, ttl_ms, length, trim, chunk = tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
-- The same fence twice: a fail-over of Redis has lost that somebody took the session up, and somebody else has done so.
if held and (held > mine or held == mine and owner ~= ARGV[7]) then return 'moved' end
if mode == 'append' then
  if held ~= mine or redis.call('LLEN', KEYS[2]) ~= length then return 'again' end
  if chunk ~= '' then redis.call('RPUSH', KEYS[2], chunk) end
  redis.call('LTRIM', KEYS[2], trim, -1)
else
  redis.call('DEL', KEYS[2])
  if mode == 'anew' then redis.call('RPUSH', KEYS[2], chunk) else redis.call('HDEL', KEYS[1], 'facts') end
end
redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'owner', ARGV[7], unpack(ARGV, 8))
redis.call('PEXPIRE', KEYS[1], ttl_ms)
redis.call('PEXPIRE', KEYS[2], ttl_ms)
return 'ok'
"""

# Returns nothing for a session that is not there or has ended; else the new fencing token, what is sealed, the journal.
_TAKE_UP = """
local facts = redis.call('HGET', KEYS[1], 'facts')
if not facts then return false end
local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'state', 'live')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return {fence, facts, redis.call('LRANGE', KEYS[2], 0, -1)}
"""


class Session:
    """One conversation as the store knows it."""

    def __init__(self, handle: Handle, session_id: str, model_id: str, sampling: lm_pb2.Sampling, history: History,
                 began: float, fence: int, flush: Callable[[], None]) -> None:
        self.id, self.model_id, self.sampling, self.history = session_id, model_id, sampling, history
        self.began = began  # Unix time
        self.on_lost: Callable[[MeshError], None] = _nobody  # somebody else has taken the session up
        self.on_available: Callable[[bool], None] = _nobody  # whether it could be taken up now
        self.lost = False
        self.ended = ""
        self._handle, self._fence, self._flush = handle, fence, flush
        self._keep = True
        self._written = history.steps
        self._written_at = time.monotonic()
        self._rewinds = -1  # of the history, when the journal was last written anew
        self._chunks: deque[int] = deque()  # the first step of each chunk in the journal
        self._end_written = False
        self._forget_at = math.inf  # monotonic; Redis may be away for longer than anybody could take the session up

    @property
    def handle(self) -> str:
        """With which the caller takes the conversation up again."""
        return self._handle.text

    @property
    def finished(self) -> bool:
        """Whether nothing more will be written."""
        return self.lost or self._end_written or time.monotonic() > self._forget_at

    @property
    def lag_s(self) -> float:
        """How old the last write is, if there is something new to write."""
        behind = self.history.steps != self._written and not self.finished
        return time.monotonic() - self._written_at if behind else 0.0

    def flush_soon(self) -> None:
        """Write what is new at once: another gateway is about to take the session up."""
        self._flush()

    def end(self, ended: str, keep: bool) -> None:
        """The call is over. `keep`: it was cut off, and may be taken up again within the grace time."""
        self.ended, self._keep = ended, keep
        self.on_lost, self.on_available = _nobody, _nobody  # they hold on to the whole call
        self._forget_at = time.monotonic() + FORGET_S
        self._flush()

    def next_write(self, owner: str, grace_s: float) -> tuple[Request, Callable[[str], None]]:
        """What to write now, and what to do with the answer."""
        history = self.history
        # Also when Redis was away for so long that steps have left the history unwritten.
        anew = self._rewinds != history.rewinds or history.first_step > self._written
        gone = bool(self.ended) and not self._keep
        mode = "gone" if gone else "anew" if anew else "append"
        first = history.first_step if anew else self._written
        steps, rewinds, ended = history.steps, history.rewinds, self.ended
        chunk = b"" if gone or (not anew and steps == first) else self._handle.seal(history.pack(first), CHUNK)
        kept = steps - history.most_kept
        trim = 0 if anew else sum(later <= kept for _, later in itertools.pairwise(self._chunks))
        fields: list[str | bytes | int | float] = [
            "state", "ended" if ended else "live", "sequence", history.next_sequence - 1, "steps", steps,
            "updated", round(time.time(), 3)]
        if ended:
            fields += ["ended", ended]
        if mode != "append":
            fields += ["session", self.id, "model", self.model_id]
        if mode == "anew":
            fields += ["facts", self._seal_facts()]
        ttl_ms = round((ENDED_TTL_S if gone else grace_s) * 1000)
        request = Request(_WRITE, _keys(self._handle), (
            self._fence, mode, ttl_ms, len(self._chunks), trim, chunk, owner, *fields))

        def done(answer: str) -> None:
            if answer == "moved":
                self.lost = True
                self.on_lost(SessionMoved("the conversation was taken up elsewhere with its resume handle"))
            elif answer == "again":
                self._rewinds = -1
            else:
                if anew:
                    self._chunks.clear()
                    self._rewinds = rewinds
                if chunk:
                    self._chunks.append(first)
                for _ in range(trim):
                    self._chunks.popleft()
                self._written, self._written_at = steps, time.monotonic()
                self._end_written = bool(ended)

        return request, done

    def _seal_facts(self) -> bytes:
        parts = (self.id.encode(), self.model_id.encode(), self.history.pack_shape(),
                 self.sampling.SerializeToString(), _TIME.pack(self.began))
        return self._handle.seal(b"".join(_LENGTH.pack(len(part)) + part for part in parts), FACTS)


class Sessions:
    """The sessions of this gateway, and the way to those that another one has left."""

    def __init__(self, store: Store, owner: str, grace_s: float) -> None:
        """`owner` names this gateway. A session can be taken up for `grace_s` after its gateway's last word."""
        self.store, self.grace_s = store, grace_s
        self._owner = owner
        self._live: dict[str, Session] = {}
        self._closing = False
        self._wake = asyncio.Event()
        self._hurry: set[str] = set()  # names of those that are to be written at once
        self._writer = asyncio.create_task(self._write_forever())
        store.on_change.add(self._tell)

    def create(self, handle: Handle, session_id: str, model_id: str, sampling: lm_pb2.Sampling, history: History
               ) -> Session:
        """A new session, written soon."""
        return self._add(handle, session_id, model_id, sampling, history, time.time(), 1)

    async def take_up(self, key: Handle) -> Session:
        """The session that was cut off; from now on it is this gateway's.

        Raises:
            UnknownSession: nobody has it (any more).
            ResumeUnavailable: Redis does not answer.
        """
        unknown = UnknownSession("no conversation has this resume handle; it has ended, or was cut off more than "
                                 f"{self.grace_s:.0f} s ago")
        try:
            found = await self.store.run(Request(_TAKE_UP, _keys(key), (self._owner, round(self.grace_s * 1000))))
        except StoreAway:
            raise ResumeUnavailable("Redis does not answer, so no conversation can be taken up now; retry") from None
        if not found:
            raise unknown
        fence, facts, chunks = found
        if (old := self._live.get(key.name)) is not None:
            old.lost = True
            old.on_lost(SessionMoved("the conversation was taken up again with its resume handle"))
        try:
            session_id, model_id, shape, sampling, began = _parts(key.open(facts, FACTS))
            history = History.from_shape(shape)
            for chunk in chunks:
                history.unpack(key.open(chunk, CHUNK))
        except (ValueError, struct.error) as error:
            log.error("the journal of a session can't be read: %s", error)
            raise unknown from None
        return self._add(key, session_id.decode(), model_id.decode(), lm_pb2.Sampling.FromString(sampling), history,
                         _TIME.unpack(began)[0], int(fence))

    @property
    def lag_s(self) -> float:
        """How far the journal that is furthest behind is behind."""
        return max((session.lag_s for session in list(self._live.values())), default=0.0)

    async def close(self) -> None:
        """Write what is left, if Redis is there."""
        self.store.on_change.discard(self._tell)
        self._closing = True
        self._wake.set()
        await self._writer
        with contextlib.suppress(StoreAway):
            await self._write(list(self._live.values()))

    def _add(self, handle: Handle, session_id: str, model_id: str, sampling: lm_pb2.Sampling, history: History,
             began: float, fence: int) -> Session:
        def flush() -> None:
            self._hurry.add(handle.name)
            self._wake.set()

        session = Session(handle, session_id, model_id, sampling, history, began, fence, flush)
        self._live[handle.name] = session
        session.flush_soon()
        return session

    def _tell(self, available: bool) -> None:
        for session in self._live.values():
            session.on_available(available)

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
        writes = [session.next_write(self._owner, self.grace_s) for session in sessions if not session.finished]
        try:
            answers = await self.store.run_all([request for request, _ in writes])
            for (_, done), answer in zip(writes, answers, strict=True):
                done(answer.decode())
        finally:
            self._live = {name: session for name, session in self._live.items() if not session.finished}


def _nobody(_: object) -> None:
    pass


def _keys(handle: Handle) -> tuple[str, str]:
    """A session's keys; the braces keep them on one node of a cluster."""
    return f"moshimesh:{{{handle.name}}}:session", f"moshimesh:{{{handle.name}}}:journal"


def _parts(data: bytes) -> list[bytes]:
    parts = []
    while data:
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        parts.append(data[_LENGTH.size:end])
        data = data[end:]
    return parts
