"""Redis: whether it answers, and how the rest of the gateway asks it. The only file that imports redis.

Every request is one Lua script over the keys of one hash tag, so that each is atomic and a cluster works as well as a
single server. Nothing here is on the path of a frame: when Redis is away, `run` says so in seconds, and calls go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio as redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    DataError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from services.gateway.redis_url import RedisUrl, read_redis_url
from services.mesh.errors import PeerLost

log = logging.getLogger(__name__)

ANSWER_S = 2.0  # a Redis that takes longer is treated as away
PROBE_S = 0.5  # how soon a Redis that was away is noticed again
MOST_AT_ONCE = 16  # requests on their way, each on a connection of its own; others wait for one of those to be answered
WARN_EVERY_S = 60.0  # a full Redis refuses several requests a second
DENIED = "NOPERM"
PROBE_KEY = "moshimesh:{probe}"
_CODES = {NoPermissionError: DENIED, OutOfMemoryError: "OOM", ReadOnlyError: "READONLY", MasterDownError: "MASTERDOWN",
          ClusterDownError: "CLUSTERDOWN"}
_USELESS = {"READONLY", "MASTERDOWN", "CLUSTERDOWN"}  # a server that says so takes no request of ours at all

Argument = bytes | str | int | float


class StoreError(Exception):
    """Redis has not done what it was asked."""


class StoreAway(StoreError):
    """Redis does not answer."""


class RequestRefused(StoreError):
    """Redis answers, but not this request: no memory for it, a key of another type, a command that is not allowed."""

    def __init__(self, message: str, code: str) -> None:
        """`code` is Redis's own: OOM, WRONGTYPE, NOPERM, ..."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Request:
    """One script and what it is run with. All `keys` carry the same hash tag."""

    script: str
    keys: Sequence[str]
    arguments: Sequence[Argument] = ()


class Store:
    """One Redis, however it is run."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for a URL that is not one of docs/sessions.md."""
        self._where = where = read_redis_url(url)
        self._files_changed_at = where.files_changed_at()
        self.available = True
        self.address = where.address
        self.on_change: set[Callable[[bool], None]] = set()  # heard when `available` changes
        self.on_answer: Callable[[float], None] = lambda seconds: None  # hears how long each answer took
        try:
            self._redis = _client(where)
        except (TypeError, ValueError) as error:  # an option's; redis names it, without its value
            raise ValueError(f"--redis-url: {error}") from None
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        self._prober: asyncio.Task[None] | None = None
        self._posted: set[asyncio.Task[None]] = set()
        self._warned: dict[str, float] = {}  # when, by code; Redis has some twenty

    async def connect(self, *probes: Callable[[str], list[Request]]) -> None:
        """Start. Each probe makes requests like those to come, on keys that have the tag it is given in their names.

        Raises:
            PeerLost: Redis does not answer.
            ValueError: it does not let its user do what a probe does.
        """
        try:
            await self._redis.set(PROBE_KEY, 1, px=1000)
        except ResponseError as error:
            refusal = _refusal(error)
            self._check_rights(refusal, None)
            if refusal.code in ("ERR", "DB"):  # no such database, or no Sentinel: waiting does not help
                raise ValueError(f"--redis-url: Redis at {self.address} refuses what the URL asks for ({error})"
                                 ) from None
        except TypeError as error:  # made when it connects
            raise ValueError("--redis-url: an option after '?' is none of the redis package's"
                             f"{_option_of(error)}") from None
        except (RedisError, RedisClusterException, OSError) as error:
            raise PeerLost(f"Redis at {self.address} can't be reached ({error}); start it, or name another one with "
                           "--redis-url") from None
        tag = secrets.token_hex(4)
        for request in [request for probe in probes for request in probe(tag)]:
            try:
                (answer,) = await self._execute([request])
            except StoreAway as error:
                raise PeerLost(f"Redis at {self.address} went away while the gateway was starting ({error})") from None
            if isinstance(answer, RequestRefused):
                self._check_rights(answer, request)
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
        """What the script returns. Raises StoreAway, RequestRefused."""
        (answer,) = await self.run_all([request])
        if isinstance(answer, RequestRefused):
            raise answer
        return answer

    async def run_all(self, requests: Sequence[Request]) -> list[Any]:
        """What the scripts return, in one round trip; each is atomic, together they are not. A RequestRefused stands in
        the place of an answer that Redis has refused.

        Raises StoreAway, and does so at once while Redis is known to be away.
        """
        answers = await self._execute(requests)
        for answer in answers:
            if isinstance(answer, RequestRefused):
                self._warn(answer)
        return answers

    async def _execute(self, requests: Sequence[Request]) -> list[Any]:
        """See run_all."""
        if not requests:
            return []
        async with self._turns:
            if not self.available:  # asked here, since tasks that wait their turn must not each find out for themselves
                raise StoreAway("Redis is away")
            pipe = self._redis.pipeline(transaction=False)
            for request in requests:
                # EVAL and not EVALSHA: a Redis that was restarted has forgotten all scripts.
                pipe.eval(request.script, len(request.keys), *request.keys, *request.arguments)
            began = time.monotonic()
            try:
                answers = [_answer(answer) for answer in await _apart(pipe.execute(raise_on_error=False))]
            except DataError:
                raise  # our bug
            except (RedisError, RedisClusterException, OSError) as error:
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
        with contextlib.suppress(StoreError):
            await self.run(request)

    def _warn(self, refusal: RequestRefused) -> None:
        if self._warned.get(refusal.code, -WARN_EVERY_S) <= time.monotonic() - WARN_EVERY_S:
            self._warned[refusal.code] = time.monotonic()
            log.warning("Redis at %s refused a request: %s", self.address, refusal)

    def _check_rights(self, refusal: RequestRefused, request: Request | None) -> None:
        """Raise ValueError when it was for lack of rights; all else may be over soon, and calls go on meanwhile."""
        if refusal.code != DENIED:
            return
        lacking = _what_lacks(refusal, request)
        raise ValueError(f"--redis-url: Redis at {self.address} does not let its user {lacking}; docs/sessions.md has "
                         "the ACL that a gateway needs")

    async def _probe_forever(self) -> None:
        """While Redis is away, look whether it takes writes again: a replica answers a PING, too."""
        while True:
            await asyncio.sleep(PROBE_S)
            if not self.available:
                with contextlib.suppress(RedisError, RedisClusterException, OSError, ValueError):
                    await self._take_new_files()
                    await self._redis.set(PROBE_KEY, 1, px=1000)
                    self._set_available(True)

    async def _take_new_files(self) -> None:
        """Read the certificates of the URL again, if they have changed: the redis package does so for no connection
        that it has had before. Raises ValueError while one is not there.
        """
        if (changed_at := self._where.files_changed_at()) != self._files_changed_at:
            old, self._redis = self._redis, _client(self._where)
            self._files_changed_at = changed_at
            await old.aclose()

    def _set_available(self, available: bool, why: Exception | None = None) -> None:
        if available == self.available:
            return
        self.available = available
        if available:
            log.info("Redis at %s is back", self.address)
        else:
            log.warning("Redis at %s is away (%s): calls go on, but none can be resumed until it is back", self.address,
                        why)
        for hear in list(self.on_change):
            hear(available)


def _client(where: RedisUrl) -> Any:
    options: dict[str, Any] = {"socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S,
                               "retry": Retry(NoBackoff(), 0)}
    if where.kind == "cluster":
        return redis.RedisCluster.from_url(where.url, **options)
    if where.sentinels is None:
        return redis.Redis.from_url(where.url, **options)
    of_master: dict[str, Any] = {**options, **parse_url(where.url)}
    of_master["ssl"] = of_master.pop("connection_class", None) is not None
    of_sentinels = options | {name: value for name, value in of_master.items() if name.startswith("ssl")} | {
        "username": where.sentinels.username, "password": where.sentinels.password}
    for name in ("host", "port"):
        of_master.pop(name, None)
    sentinel = Sentinel(where.sentinels.nodes, sentinel_kwargs=of_sentinels)
    return sentinel.master_for(where.sentinels.master, **of_master)


async def _apart(work: Awaitable[list[Any]]) -> list[Any]:
    """Wait for work in a task of its own. Before Python 3.12, asyncio.wait_for, which redis uses, loses a cancellation
    that comes when it is just done: a caller who has left would go on, and keep its slots.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    return task.result()


def _answer(answer: Any) -> Any:
    """An answer or a RequestRefused. Raises the errors after which no request would be answered."""
    if not isinstance(answer, Exception):
        return answer
    if not isinstance(answer, ResponseError):
        raise answer  # a lost connection, to one node of a cluster
    refusal = _refusal(answer)
    if refusal.code in _USELESS:
        raise answer
    return refusal


def _refusal(error: ResponseError) -> RequestRefused:
    """The error with Redis's own code. Redis 7 puts the code of a script's command in front, 6 wraps it, and the redis
    package removes those that it knows.
    """
    message = str(error)
    denied = "ACL failure in script" in message or "The user executing the script can't" in message
    wrapped = re.search(r"@user_script: ?\d+: -?([A-Z]{2,}) ", message)
    code = DENIED if denied else wrapped[1] if wrapped else _CODES.get(type(error)) or message.split(" ")[0]
    return RequestRefused(message, code if code.isupper() else "ERR")


def _option_of(error: TypeError) -> str:
    """The name of an option that nothing takes, for a message."""
    named = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return f": {named[1]}" if named else ""


def _what_lacks(refusal: RequestRefused, request: Request | None) -> str:
    """What a user may not do, as a verb and its object."""
    message = str(refusal)
    if " keys " in message or "a key" in message:
        return f"touch the keys moshimesh:*, of which {PROBE_KEY if request is None else request.keys[0]} is one"
    named = re.search(r"run the '([\w|]+)' command", message)
    line = re.search(r"@user_script:\s?(\d+)", message)
    if named:
        return f"run {named[1].upper()}"
    if line and request is not None:
        commands = re.findall(r"redis\.call\('(\w+)'", request.script.splitlines()[int(line[1]) - 1])
        return f"run {' or '.join(dict.fromkeys(commands))}"
    return f"do what it needs ({message})"
