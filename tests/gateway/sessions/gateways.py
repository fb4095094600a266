"""Gateways that share a real Redis, as far as their sessions go."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from moshimesh.lm.v1 import lm_pb2

from services.gateway.sessions.history import History
from services.gateway.sessions.journal import Session
from services.gateway.sessions.records import Record, keys_of
from services.gateway.sessions.sealing import Handle
from services.gateway.sessions.sessions import Sessions
from services.gateway.store import Store
from tests.gateway.redis_server import RedisServer
from tests.until import until

SAMPLING = lm_pb2.Sampling(text_temperature=0.7, seed=1234567)
CONTEXT = 100


class Gateway:
    """What a gateway process has of Redis."""

    def __init__(self, url: str, name: str = "one", grace_s: float = 60.0,
                 now: Callable[[], float] = time.monotonic) -> None:
        self.store = Store(url)
        self.name, self.grace_s, self.now = name, grace_s, now

    async def __aenter__(self) -> Sessions:
        await self.store.connect()
        self.sessions = Sessions(self.store, self.name, self.grace_s, self.now)
        return self.sessions

    async def __aexit__(self, *_: object) -> None:
        await self.sessions.close()
        await self.store.close()


def new_session(sessions: Sessions, steps: int = 0) -> Session:
    record = Record("a session", "a model", "a codec", SAMPLING, History(8, 8, 1, CONTEXT))
    session = sessions.create(Handle.new(), record)
    say(session.history, steps)
    return session


def say(history: History, steps: int, rng: random.Random = random.Random(1)) -> None:  # noqa: B008
    for _ in range(steps):
        history.append(history.next_sequence, [rng.randrange(2048) for _ in range(8)],
                       [rng.randrange(32000), *(rng.randrange(2048) for _ in range(8))] if history.steps else None)


async def resume(sessions: Sessions, handle: str, check: Callable[[Record], object] = lambda record: None) -> Session:
    """Take a session up. `check` may refuse it by raising."""
    async def checked(record: Record) -> None:
        check(record)

    session, _ = await sessions.resume(Handle(handle), checked)
    return session


async def written(server: RedisServer, *sessions: Session) -> None:
    """Wait until all that the sessions have now is in Redis, or belongs to another gateway."""
    for session in sessions:
        record, _ = keys_of(Handle(session.handle).name)
        before = int(server.client.hget(record, "revision") or 0)

        def twice(session: Session = session, record: str = record, before: int = before) -> bool:
            session.flush_soon()  # the first write may have been on its way before
            return session.finished or int(server.client.hget(record, "revision") or 0) >= before + 2

        await until(twice)
