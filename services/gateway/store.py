"""Redis: where it is, whether it answers, and how the rest of the gateway asks it. The only file that imports redis.

Every request is one Lua script over the keys of one hash tag, so that each is atomic and a cluster works as well as a
single server. Nothing here is on the path of a frame: when Redis is away, `run` says so within ANSWER_S at most, and
calls go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from services.mesh.errors import PeerLost

log = logging.getLogger(__name__)

ANSWER_S = 2.0  # a Redis that takes longer is treated as away
PROBE_S = 0.5  # how soon a Redis that was away is noticed again
MOST_CONNECTIONS = 16  # those who open a call wait for one; running calls share one

Argument = bytes | str | int | float
# A script that is wrong is among these, too: its message is in the log, and calls go on.
_FAILURES = (RedisError, RedisClusterException, OSError)


class StoreAway(Exception):
    """Redis does not answer."""


@dataclass(frozen=True)
class Request:
    """One script and what it is run with. All `keys` carry the same hash tag."""

    script: str
    keys: Sequence[str]
    arguments: Sequence[Argument] = ()


class Store:
    """One Redis, however it is run."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for a URL that is none of: redis://, rediss://, unix://, redis+cluster:// (or
        rediss+cluster://) of any node, redis+sentinel://host:port,host:port/name-of-the-master/db.
        """
        self.available = True
        self.place = url.rpartition("@")[2].partition("?")[0]  # without the password
        self.on_change: set[Callable[[bool], None]] = set()  # heard when `available` changes
        self.on_answer: Callable[[float], None] = lambda seconds: None  # hears how long each answer took
        self._redis = _client(url)
        self._prober: asyncio.Task[None] | None = None
        self._posted: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Start. Raises PeerLost when Redis does not answer."""
        try:
            await self._redis.ping()
        except _FAILURES as error:
            raise PeerLost(f"Redis at {self.place} can't be reached ({error}); start it, or name another one with "
                           "--redis-url") from None
        self._prober = asyncio.create_task(self._probe_forever())

    async def close(self) -> None:
        """Leave."""
        if self._prober is not None:
            self._prober.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._prober
        await asyncio.gather(*self._posted)
        await self._redis.aclose()

    async def run(self, request: Request) -> Any:
        """What the script returns. Raises StoreAway."""
        return (await self.run_all([request]))[0]

    async def run_all(self, requests: Sequence[Request]) -> list[Any]:
        """What the scripts return, in one round trip; each is atomic, together they are not.

        Raises StoreAway, and does so at once while Redis is known to be away.
        """
        if not self.available:
            raise StoreAway("Redis is away")
        if not requests:
            return []
        pipe = self._redis.pipeline(transaction=False)
        for request in requests:
            # EVAL and not EVALSHA: a Redis that was restarted has forgotten all scripts.
            pipe.eval(request.script, len(request.keys), *request.keys, *request.arguments)
        began = time.monotonic()
        try:
            answers: list[Any] = await pipe.execute()
        except _FAILURES as error:
            self._set_available(False, error)
            raise StoreAway(str(error)) from None
        self.on_answer(time.monotonic() - began)
        self._set_available(True)
        return answers

    def post(self, request: Request) -> None:
        """Run a script soon, if Redis is there; for what expires by itself if it isn't."""
        task = asyncio.create_task(self._run_if_there(request))
        self._posted.add(task)
        task.add_done_callback(self._posted.discard)

    async def _run_if_there(self, request: Request) -> None:
        with contextlib.suppress(StoreAway):
            await self.run(request)

    async def _probe_forever(self) -> None:
        """While Redis is away, look whether it takes writes again: a full one or a replica answers a PING, too."""
        while True:
            await asyncio.sleep(PROBE_S)
            if not self.available:
                with contextlib.suppress(*_FAILURES):
                    await self._redis.set("moshimesh:{probe}", 1, px=1000)
                    self._set_available(True)

    def _set_available(self, available: bool, why: Exception | None = None) -> None:
        if available == self.available:
            return
        self.available = available
        if available:
            log.info("Redis at %s is back", self.place)
        else:
            log.warning("Redis at %s is away (%s): calls go on, but none can be taken up again until it is back",
                        self.place, why)
        for hear in list(self.on_change):
            hear(available)


def _client(url: str) -> Any:
    options: dict[str, Any] = {"socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S,
                               "retry": Retry(NoBackoff(), 0)}
    scheme, _, rest = url.partition("://")
    if scheme in ("redis+cluster", "rediss+cluster"):
        return redis.RedisCluster.from_url(f"{scheme.partition('+')[0]}://{rest}", **options)
    if scheme == "redis+sentinel":
        parts = urlsplit(f"redis://{rest}")
        nodes = [node.rpartition(":") for node in parts.netloc.rpartition("@")[2].split(",")]
        name, _, database = parts.path.strip("/").partition("/")
        if not name or not all(port.isdigit() for _, _, port in nodes):
            raise ValueError("--redis-url: redis+sentinel:// needs host:port,host:port/name-of-the-master, got "
                             f"{parts.path!r} behind {len(nodes)} hosts")
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        sentinel = Sentinel([(host, int(port)) for host, _, port in nodes], sentinel_kwargs=options)
        return sentinel.master_for(name, db=int(database or 0), username=unquote(user) or None,
                                   password=unquote(password) or None, **options)
    return redis.Redis.from_pool(redis.BlockingConnectionPool.from_url(
        url, max_connections=MOST_CONNECTIONS, timeout=ANSWER_S, **options))
