"""A session of this gateway: which part of it is new, and how that is written to Redis (docs/sessions.md)."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from services.gateway.sessions.records import Record, keys_of, seal_chunk, seal_facts
from services.gateway.sessions.sealing import Handle
from services.gateway.store import Request
from services.mesh.errors import MeshError, SessionMoved

ENDED_TTL_S = 600  # long enough to ask support about a call that has ended
FORGET_S = 120.0  # how long a session that has ended stays in memory until Redis is back: some 100 kB each
REFUSED_RETRY_S = 5.0  # a write that Redis refuses (a full one does) is tried again this much later: callers are told
# of each change, so it must not change with every write

Mode = Literal["append", "anew", "gone"]
"""Add to the journal; write all of it, and the facts; delete what was said and leave the record."""

# Returns "ok"; "moved" when another gateway owns the session; "again" when the journal is not what its owner thinks, as
# after a fail-over of Redis: then it is written anew.
WRITE = """
local held, owner = tonumber(redis.call('HGET', KEYS[1], 'fence')), redis.call('HGET', KEYS[1], 'owner')
local mine, mode, ttl_ms, length, trim, chunk = tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
-- The same fence twice: a fail-over of Redis lost that a gateway took the session over, and then another one did.
if held and (held > mine or held == mine and owner ~= ARGV[7]) then return 'moved' end
if mode == 'append' then
  if held ~= mine or redis.call('LLEN', KEYS[2]) ~= length then return 'again' end
  if chunk ~= '' then redis.call('RPUSH', KEYS[2], chunk) end
  redis.call('LTRIM', KEYS[2], trim, -1)
else
  redis.call('DEL', KEYS[2])
  if mode == 'anew' then redis.call('RPUSH', KEYS[2], chunk) else redis.call('HDEL', KEYS[1], 'facts') end
end
redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'owner', ARGV[7], 'updated', redis.call('TIME')[1], unpack(ARGV, 8))
redis.call('HINCRBY', KEYS[1], 'revision', 1)
redis.call('PEXPIRE', KEYS[1], ttl_ms)
redis.call('PEXPIRE', KEYS[2], ttl_ms)
return 'ok'
"""


@dataclass(frozen=True)
class Listener:
    """What a call wants to hear of its session."""

    lost: Callable[[MeshError], None]
    """Another call has taken the session over."""
    resumable: Callable[[bool], None]
    """Whether it could be resumed if it were cut off now; told when that changes."""


@dataclass(frozen=True)
class Write:
    """One write of a session, as it was when the write was made."""

    request: Request
    mode: Mode
    first_step: int
    """Of what is new."""
    steps: int
    """Of the session, with what is new."""
    rewinds: int
    trimmed: int
    """Chunks that leave the journal, since newer ones hold all that a model takes."""
    chunk: bool
    """Whether it adds one."""
    ended: bool


class Session:
    """One conversation as the store knows it, owned by this gateway."""

    def __init__(self, handle: Handle, record: Record, fence: int, resumable: bool, flush: Callable[[], None],
                 now: Callable[[], float]) -> None:
        """`fence` is this gateway's fencing token, `resumable` whether Redis is there, `now` a monotonic clock (s).
        `flush` asks for a write at once.
        """
        self.id, self.model_id, self.codec_id = record.session_id, record.model_id, record.codec_id
        self.sampling, self.history = record.sampling, record.history
        self.key_id = ""  # names the key of the caller who holds it
        self.lost = False
        self.ended = ""
        self.resumable = resumable
        self._record, self._handle, self._fence, self._flush, self._now = record, handle, fence, flush, now
        self._age_s, self._began_at = record.age_s, now()
        self._listener: Listener | None = None
        self._keep = True
        self._written = self.history.steps
        self._written_at = self._began_at
        self._rewinds = -1  # of the history, when the journal was last written anew
        self._chunks: deque[int] = deque()  # the first step of each chunk in the journal
        self._end_written = False
        self._forget_at = math.inf
        self._refused_until = -math.inf
        self._flushing: list[asyncio.Future[None]] = []  # until a write has been tried

    @property
    def handle(self) -> str:
        """The handle with which the caller resumes the conversation."""
        return self._handle.text

    @property
    def age_s(self) -> float:
        """How long the call has lasted, without the time between a cut and a resumption."""
        return self._age_s + self._now() - self._began_at

    @property
    def finished(self) -> bool:
        """Whether nothing more will be written."""
        return self.lost or self._end_written or self._now() > self._forget_at

    @property
    def due(self) -> bool:
        """Whether it may be written now: not soon after Redis has refused to."""
        return not self.finished and self._now() >= self._refused_until

    @property
    def lag_s(self) -> float:
        """How old the last write is, if there is something new to write."""
        unwritten = self.history.steps != self._written and not self.finished
        return self._now() - self._written_at if unwritten else 0.0

    def listen(self, listener: Listener) -> None:
        """From now on the listener hears what happens to the session, and at once what has happened so far."""
        self._listener = listener
        if self.lost:
            self.lose("elsewhere")
        if not self.resumable:
            listener.resumable(False)

    def flush_soon(self) -> None:
        """Write what is new at once."""
        self._flush()

    async def flushed(self) -> None:
        """Write what is new at once, and wait until that is done or can't be: another gateway is about to resume the
        session.
        """
        if self.resumable and not self.finished:
            self._flushing.append(asyncio.get_running_loop().create_future())
            self._flush()
            await self._flushing[-1]

    def end(self, ended: str, keep: bool) -> None:
        """The call is over. `keep`: it was cut off, and can be resumed within the grace time."""
        self.ended, self._keep = ended, keep
        self._listener = None  # it holds on to the whole call
        self._forget_at = self._now() + FORGET_S
        self._flush()

    def lose(self, where: str) -> None:
        """Another call has taken the session over."""
        self.lost = True
        self._tried()
        if self._listener is not None:
            self._listener.lost(SessionMoved(where))

    def unreachable(self) -> None:
        """Redis is away."""
        self._tell(False)

    def next_write(self, owner: str, grace_s: float) -> Write:
        """What to write now. Call `written` or `refused` with the result before the next one."""
        history, ended = self.history, self.ended
        # The second: Redis was away for so long that steps have left the history unwritten.
        anew = self._rewinds != history.rewinds or history.first_step > self._written
        mode: Mode = "gone" if ended and not self._keep else "anew" if anew else "append"
        first_step = history.first_step if anew else self._written
        chunk = b""
        if mode == "anew" or (mode == "append" and history.steps > first_step):
            chunk = seal_chunk(self._handle, history, first_step, self.age_s)
        oldest_needed = history.steps - history.most_kept
        trimmed = 0 if anew else sum(following <= oldest_needed for _, following in itertools.pairwise(self._chunks))
        fields: list[str | bytes | int] = ["state", "ended" if ended else "live",
                                           "sequence", history.next_sequence - 1, "steps", history.steps]
        if ended:
            fields += ["ended", ended]
        if mode != "append":
            fields += ["session", self.id, "model", self.model_id, "key", self.key_id]
        if mode == "anew":
            fields += ["facts", seal_facts(self._handle, self._record)]
        ttl_ms = round((ENDED_TTL_S if mode == "gone" else grace_s) * 1000)
        request = Request(WRITE, keys_of(self._handle.name), (
            self._fence, mode, ttl_ms, len(self._chunks), trimmed, chunk, owner, *fields))
        return Write(request, mode, first_step, history.steps, history.rewinds, trimmed, bool(chunk), bool(ended))

    def written(self, write: Write, answer: str) -> None:
        """What the script answered."""
        self._tried()
        if answer == "moved":
            self.lose("elsewhere")
            return
        if answer == "again":
            self._rewinds = -1
            return
        if write.mode == "anew":
            self._chunks.clear()
            self._rewinds = write.rewinds
        if write.chunk:
            self._chunks.append(write.first_step)
        for _ in range(write.trimmed):
            self._chunks.popleft()
        self._written, self._written_at = write.steps, self._now()
        self._end_written = write.ended
        self._tell(True)

    def refused(self) -> None:
        """Redis did not do the write; it is full, for example."""
        self._refused_until = self._now() + REFUSED_RETRY_S
        self._tell(False)

    def _tried(self) -> None:
        for flush in self._flushing:
            if not flush.done():
                flush.set_result(None)
        self._flushing.clear()

    def _tell(self, resumable: bool) -> None:
        if not resumable:
            self._tried()
        if resumable != self.resumable:
            self.resumable = resumable
            if self._listener is not None:
                self._listener.resumable(resumable)


def probes(tag: str) -> list[Request]:
    """Writes of every mode, for Store.connect."""
    keys, fields = keys_of(f"probe-{tag}"), ("facts", "none")
    return [Request(WRITE, keys, (1, mode, 1000, 1, 0, "a chunk", tag, *fields)) for mode in ("anew", "append", "gone")]
