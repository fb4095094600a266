"""Sessions in a real Redis: taken up by another gateway, owned by one, unreadable to all others."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from moshimesh.lm.v1 import lm_pb2

from harness.local_mesh import free_port
from services.gateway.sessions.history import History
from services.gateway.sessions.sealing import Handle
from services.gateway.sessions.sessions import WRITE_EVERY_S, Session, Sessions
from services.gateway.store import Store
from services.mesh.errors import MeshError, PeerLost, ResumeUnavailable, SessionMoved, UnknownSession
from tests.gateway.redis_server import RedisServer

SAMPLING = lm_pb2.Sampling(text_temperature=0.7, seed=1234567)
WRITTEN_S = 2 * WRITE_EVERY_S
CONTEXT = 100


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


class Gateway:
    """What a gateway process has of Redis."""

    def __init__(self, url: str, name: str = "one", grace_s: float = 60.0) -> None:
        self.store = Store(url)
        self.name, self.grace_s = name, grace_s

    async def __aenter__(self) -> Sessions:
        await self.store.connect()
        self.sessions = Sessions(self.store, self.name, self.grace_s)
        return self.sessions

    async def __aexit__(self, *_: object) -> None:
        await self.sessions.close()
        await self.store.close()


def new_session(sessions: Sessions, steps: int = 0) -> Session:
    session = sessions.create(Handle.new(), "a session", "a model", SAMPLING, History(8, 8, 1, CONTEXT))
    say(session, steps)
    return session


def say(session: Session, steps: int, rng: random.Random = random.Random(1)) -> None:  # noqa: B008
    history = session.history
    for _ in range(steps):
        history.append(history.next_sequence, [rng.randrange(2048) for _ in range(8)],
                       [rng.randrange(32000), *(rng.randrange(2048) for _ in range(8))] if history.steps else None)


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_another_gateway_takes_a_session_up(server: RedisServer) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session = new_session(first, 20)
        for _ in range(6):
            await asyncio.sleep(WRITE_EVERY_S / 2)
            say(session, 7)
        await asyncio.sleep(WRITTEN_S)
        copy = await second.take_up(Handle(session.handle))
        assert (copy.id, copy.model_id, copy.sampling) == ("a session", "a model", SAMPLING)
        assert copy.history.to_proto() == session.history.to_proto()
        assert copy.history.next_sequence == session.history.next_sequence == 62


async def test_a_long_journal_is_capped_and_whole(server: RedisServer) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session = new_session(first)
        for _ in range(40):
            say(session, 30)
            session.flush_soon()
            await asyncio.sleep(0.02)
        await asyncio.sleep(WRITTEN_S)
        (journal,) = server.client.keys("*journal")
        assert server.client.llen(journal) <= session.history.most_kept // 30 + 3
        copy = await second.take_up(Handle(session.handle))
        assert copy.history.to_proto() == session.history.to_proto()


async def test_one_owner(server: RedisServer) -> None:
    """The old owner hears that it has lost the session, and what it writes after that is refused."""
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session = new_session(first, 20)
        lost: list[MeshError] = []
        session.on_lost = lost.append
        await asyncio.sleep(WRITTEN_S)
        copy = await second.take_up(Handle(session.handle))
        say(session, 10)
        say(copy, 5)
        await until(lambda: bool(lost))
        assert isinstance(lost[0], SessionMoved)
        await asyncio.sleep(WRITTEN_S)
        session.end("failed", keep=False)
        await asyncio.sleep(WRITTEN_S)
        again = await second.take_up(Handle(session.handle))
        assert again.history.to_proto() == copy.history.to_proto()


async def test_taking_up_at_the_same_gateway_ends_the_old_call(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 20)
        lost: list[MeshError] = []
        session.on_lost = lost.append
        await asyncio.sleep(WRITTEN_S)
        await sessions.take_up(Handle(session.handle))
        assert len(lost) == 1


async def test_a_race_has_one_winner(server: RedisServer) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second, Gateway(server.url, "3") as third:
        session = new_session(first, 20)
        await asyncio.sleep(WRITTEN_S)
        copies = await asyncio.gather(*(gateway.take_up(Handle(session.handle)) for gateway in (second, third)))
        for copy in copies:
            say(copy, 10, random.Random(id(copy)))
        await asyncio.sleep(WRITTEN_S)
        assert sorted(copy.lost for copy in copies) == [False, True]
        (winner,) = (copy for copy in copies if not copy.lost)
        assert (await first.take_up(Handle(session.handle))).history.to_proto() == winner.history.to_proto()


async def test_a_rewound_history_replaces_the_journal(server: RedisServer) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session = new_session(first, 20)
        await asyncio.sleep(WRITTEN_S)
        copy = await second.take_up(Handle(session.handle))
        copy.history.rewind(12)
        say(copy, 3, random.Random(7))
        await asyncio.sleep(WRITTEN_S)
        assert (await first.take_up(Handle(session.handle))).history.to_proto() == copy.history.to_proto()


async def test_a_session_that_was_cut_off_expires(server: RedisServer) -> None:
    async with Gateway(server.url, grace_s=1.0) as sessions:
        session = new_session(sessions, 5)
        session.end("cancelled", keep=True)
        await asyncio.sleep(0.3)
        assert (await sessions.take_up(Handle(session.handle))).history.steps == 5
        session = new_session(sessions, 5)
        session.end("cancelled", keep=True)
        await asyncio.sleep(1.5)
        with pytest.raises(UnknownSession):
            await sessions.take_up(Handle(session.handle))


async def test_a_session_that_has_ended_leaves_its_record_only(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 5)
        await asyncio.sleep(WRITTEN_S)
        session.end("completed", keep=False)
        await asyncio.sleep(WRITTEN_S)
        (key,) = server.client.keys("*")
        record = server.client.hgetall(key)
        assert record.items() >= {b"session": b"a session", b"state": b"ended", b"ended": b"completed"}.items()
        assert b"facts" not in record
        assert 0 < server.client.ttl(key) <= 600
        with pytest.raises(UnknownSession):
            await sessions.take_up(Handle(session.handle))


async def test_redis_comes_back_empty(server: RedisServer) -> None:
    """Calls go on while it is away, and are told; then all of it is written again."""
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 20)
        told: list[bool] = []
        session.on_available = told.append
        await asyncio.sleep(WRITTEN_S)
        server.kill()
        say(session, 2 * session.history.most_kept + 300)  # more than is kept
        await until(lambda: told == [False])
        with pytest.raises(ResumeUnavailable):
            await sessions.take_up(Handle(session.handle))
        born_meanwhile = new_session(sessions, 9)
        server.start()
        await until(lambda: told == [False, True])
        await asyncio.sleep(WRITTEN_S)
        for one in (session, born_meanwhile):
            assert (await sessions.take_up(Handle(one.handle))).history.to_proto() == one.history.to_proto()


async def test_redis_that_hangs_is_away(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 20)
        await asyncio.sleep(WRITTEN_S)
        server.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(ResumeUnavailable):
            await sessions.take_up(Handle(session.handle))
        assert time.monotonic() - began < 5
        server.process.send_signal(signal.SIGCONT)
        await until(lambda: sessions.store.available)
        assert (await sessions.take_up(Handle(session.handle))).history.steps == 20


async def test_a_redis_that_takes_no_writes_is_away(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 10)
        await asyncio.sleep(WRITTEN_S)
        server.client.config_set("maxmemory", 1)
        say(session, 10)
        await until(lambda: not sessions.store.available)
        await asyncio.sleep(1.0)
        assert not sessions.store.available
        session.end("cancelled", keep=True)
        server.client.config_set("maxmemory", 0)
        await until(lambda: sessions.store.available)
        await asyncio.sleep(WRITTEN_S)
        assert (await sessions.take_up(Handle(session.handle))).history.steps == 20


async def test_two_who_have_one_fence(server: RedisServer) -> None:
    """A fail-over of Redis loses that the session was taken up; then somebody else takes it up, with the same token."""
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second, Gateway(server.url, "3") as third:
        session = new_session(first, 20)
        await asyncio.sleep(WRITTEN_S)
        session.lost = True
        copy = await second.take_up(Handle(session.handle))
        (record,) = server.client.keys("*session")
        server.client.hincrby(record, "fence", -1)
        other = await third.take_up(Handle(session.handle))
        await asyncio.sleep(2 * WRITTEN_S)
        assert (copy.lost, other.lost) == (True, False)


async def test_a_lost_write_is_mended(server: RedisServer) -> None:
    """A replica that became the master may lack the last writes of the old one."""
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 20)
        await asyncio.sleep(WRITTEN_S)
        say(session, 20)
        await asyncio.sleep(WRITTEN_S)
        (journal,) = server.client.keys("*journal")
        server.client.rpop(journal)
        say(session, 20)
        await asyncio.sleep(2 * WRITTEN_S)
        assert (await sessions.take_up(Handle(session.handle))).history.to_proto() == session.history.to_proto()


async def test_nothing_in_redis_is_readable(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 60)
        await asyncio.sleep(WRITTEN_S)
        proto = session.history.to_proto()
        dump = b"".join(key + (server.client.dump(key) or b"") for key in server.client.keys("*"))
        plain = [session.handle.encode(), session.sampling.SerializeToString(), session.history.pack(0)[16:],
                 bytes(proto.SerializeToString()[8:40])]
        # No three tokens in a row, in either byte order.
        for row in range(0, len(proto.tokens) - 3, 3):
            three = proto.tokens[row:row + 3]
            plain += [b"".join(token.to_bytes(2, order) for token in three) for order in ("little", "big")]
        for secret in plain:
            assert secret not in dump


async def test_a_damaged_journal_is_not_taken_up(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 20)
        await asyncio.sleep(WRITTEN_S)
        (journal,) = server.client.keys("*journal")
        chunk = server.client.lindex(journal, 0)
        assert chunk is not None
        server.client.lset(journal, 0, bytes([chunk[0] ^ 1]) + chunk[1:])
        with pytest.raises(UnknownSession):
            await sessions.take_up(Handle(session.handle))


@pytest.mark.parametrize("handle", ["", "x", "ü" * 43, "A" * 42, "A" * 43, "A" * 44, "=" * 43, "A" * 10_000])
async def test_handles_that_nobody_gave(server: RedisServer, handle: str) -> None:
    async with Gateway(server.url) as sessions:
        with pytest.raises(UnknownSession):
            await sessions.take_up(Handle(handle))


def test_handles() -> None:
    handle, other = Handle.new(), Handle.new()
    same = Handle(handle.text)
    assert (same.name, len(handle.text)) == (handle.name, 43)
    assert handle.name != other.name and handle.text not in handle.name
    sealed = handle.seal(b"data", b"kind")
    assert same.open(sealed, b"kind") == b"data"
    for reader, kind, data in ((other, b"kind", sealed), (same, b"other", sealed), (same, b"kind", sealed[:-1]),
                               (same, b"kind", b"")):
        with pytest.raises(ValueError, match="sealed with another handle"):
            reader.open(data, kind)


async def test_no_redis_at_the_start_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(PeerLost, match="--redis-url"):
        await Store(f"redis://127.0.0.1:{free_port()}/0").connect()


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis+sentinel://localhost/x",
                                 "redis+sentinel://localhost:26379"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|--redis-url"):
        Store(url)


@pytest.fixture
async def sentinel() -> AsyncIterator[tuple[str, list[RedisServer]]]:
    """A master, its replica, and one sentinel that watches them."""
    master = RedisServer("--repl-diskless-sync-delay", "0")
    replica = RedisServer("--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0")
    await until(lambda: replica.client.info("replication")["master_link_status"] == "up")
    watcher = RedisServer("--sentinel", config=f"""
        sentinel monitor calls 127.0.0.1 {master.port} 1
        sentinel down-after-milliseconds calls 500
        sentinel failover-timeout calls 3000
        """.replace("        ", ""))
    yield f"redis+sentinel://127.0.0.1:{watcher.port}/calls/0", [master, replica]
    for server in (watcher, replica, master):
        server.close()


async def test_a_master_that_is_lost(sentinel: tuple[str, list[RedisServer]]) -> None:
    url, (master, _) = sentinel
    async with Gateway(url) as sessions:
        session = new_session(sessions, 20)
        await asyncio.sleep(WRITTEN_S)
        master.kill()
        say(session, 20)
        await until(lambda: not sessions.store.available)
        await until(lambda: sessions.store.available, 20)
        await asyncio.sleep(2 * WRITTEN_S)
        assert (await sessions.take_up(Handle(session.handle))).history.to_proto() == session.history.to_proto()


async def test_a_cluster() -> None:
    nodes = [RedisServer("--cluster-enabled", "yes") for _ in range(3)]
    try:
        for number, node in enumerate(nodes):  # as `redis-cli --cluster create` does, which not every Redis brings
            node.client.cluster("SET-CONFIG-EPOCH", number + 1)
            node.client.cluster("ADDSLOTS", *range(16384 * number // 3, 16384 * (number + 1) // 3))
            node.client.cluster("MEET", "127.0.0.1", nodes[0].port)
        await until(lambda: all(node.client.cluster("info")["cluster_state"] == "ok" for node in nodes), 10)
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        async with Gateway(url) as first, Gateway(url, "two") as second:
            many = [new_session(first, 20) for _ in range(9)]
            await asyncio.sleep(2 * WRITTEN_S)
            for session in many:
                assert (await second.take_up(Handle(session.handle))).history.to_proto() == session.history.to_proto()
            assert all(node.client.dbsize() for node in nodes)
    finally:
        for node in nodes:
            node.close()
