"""Sessions in a real Redis: resumed by another gateway, owned by one, unreadable to all others."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterator

import pytest

from services.gateway.sessions.journal import REFUSED_RETRY_S, Listener
from services.gateway.sessions.records import Record, keys_of
from services.gateway.sessions.sealing import Handle
from services.mesh.errors import (
    InvalidRequest,
    MeshError,
    ResumeUnavailable,
    SessionMoved,
    UnknownSession,
)
from tests.gateway.redis_server import RedisServer
from tests.gateway.sessions.gateways import SAMPLING, Gateway, new_session, resume, say, written
from tests.until import until


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


class Heard:
    """What a call hears of its session."""

    def __init__(self) -> None:
        self.lost: list[MeshError] = []
        self.resumable: list[bool] = []
        self.listener = Listener(self.lost.append, self.resumable.append)


async def test_another_gateway_resumes_a_session(server: RedisServer) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session = new_session(first, 20)
        for _ in range(6):
            await written(server, session)
            say(session.history, 7)
        await written(server, session)
        copy = await resume(second, session.handle)
        assert (copy.id, copy.model_id, copy.codec_id, copy.sampling) == ("a session", "a model", "a codec", SAMPLING)
        assert copy.history.to_proto() == session.history.to_proto()
        assert copy.history.next_sequence == session.history.next_sequence == 62


async def test_sessions_are_written_without_being_asked(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 20)
        record, _ = keys_of(Handle(session.handle).name)
        for steps in (20, 30, 30):
            await until(lambda steps=steps: (server.client.hget(record, "steps"), sessions.lag_s)
                        == (str(steps).encode(), 0.0))
            say(session.history, 30 - session.history.steps)


async def test_a_flush_is_over_when_another_gateway_can_read_what_was_said_or_none_can(server: RedisServer) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session, other = new_session(first, 20), new_session(first, 20)
        await written(server, session)
        say(session.history, 7)
        await asyncio.wait_for(session.flushed(), 10)
        copy = await resume(second, session.handle)
        assert copy.history.steps == 27
        say(session.history, 3)
        await asyncio.wait_for(asyncio.gather(session.flushed(), session.flushed()), 10)  # it is another's
        assert session.lost
        server.client.shutdown(nosave=True)
        say(other.history, 3)
        await asyncio.wait_for(other.flushed(), 10)
        assert not other.resumable


async def test_a_long_journal_is_capped_and_whole(server: RedisServer) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session = new_session(first)
        for _ in range(40):
            say(session.history, 30)
            await written(server, session)
        _, journal = keys_of(Handle(session.handle).name)
        assert server.client.llen(journal) <= session.history.most_kept // 30 + 3
        copy = await resume(second, session.handle)
        assert copy.history.to_proto() == session.history.to_proto()


async def test_one_owner(server: RedisServer) -> None:
    """The old owner hears that it has lost the session, and what it writes after that is refused."""
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session, heard = new_session(first, 20), Heard()
        session.listen(heard.listener)
        await written(server, session)
        copy = await resume(second, session.handle)
        say(session.history, 10)
        say(copy.history, 5)
        await until(lambda: heard.lost)
        assert isinstance(heard.lost[0], SessionMoved)
        await written(server, copy)
        session.end("failed", keep=False)
        await written(server, session, copy)
        again = await resume(second, session.handle)
        assert again.history.to_proto() == copy.history.to_proto()


async def test_resuming_at_the_same_gateway_ends_the_old_call(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        session, heard, late = new_session(sessions, 20), Heard(), Heard()
        session.listen(heard.listener)
        await written(server, session)
        await resume(sessions, session.handle)
        assert len(heard.lost) == 1
        session.listen(late.listener)
        assert len(late.lost) == 1  # a call that was being opened meanwhile


async def test_a_refused_resumption_leaves_the_live_call_alone(server: RedisServer) -> None:
    """The caller's rate and sequences are checked before anything is taken from the call that holds the session."""
    def refuse(record: Record) -> None:
        record.history.rewind(5)
        raise InvalidRequest("BAD_SEQUENCE", "no")

    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session, heard = new_session(first, 20), Heard()
        session.listen(heard.listener)
        await written(server, session)
        record, _ = keys_of(Handle(session.handle).name)
        before = server.client.hmget(record, "fence", "owner", "state")
        for gateway in (first, second):
            with pytest.raises(InvalidRequest):
                await resume(gateway, session.handle, refuse)
        say(session.history, 5)
        await written(server, session)
        assert (heard.lost, session.lost) == ([], False)
        assert server.client.hmget(record, "fence", "owner", "state") == before
        copy = await resume(second, session.handle)
        assert copy.history.to_proto() == session.history.to_proto()


@pytest.mark.parametrize("change", ["written", "taken over"])
async def test_what_changes_while_it_is_checked_is_read_again(server: RedisServer, change: str) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session = new_session(first, 20)
        await written(server, session)
        await first.close()  # from here on nothing happens to it but what the check does
        steps = []

        def check(record: Record) -> None:
            steps.append(record.history.steps)
            name, _ = keys_of(Handle(session.handle).name)
            if len(steps) == 1:
                server.client.hincrby(name, "revision", 1)
                if change == "taken over":
                    server.client.hset(name, mapping={"fence": 7, "owner": "a third one"})

        copy = await resume(second, session.handle, check)
        assert steps == [20, 20]
        await written(server, copy)
        assert not copy.lost


async def test_a_session_that_never_stands_still_is_not_taken_over(server: RedisServer) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session = new_session(first, 20)
        await written(server, session)
        name, _ = keys_of(Handle(session.handle).name)
        with pytest.raises(ResumeUnavailable, match="retry"):
            await resume(second, session.handle, lambda record: server.client.hincrby(name, "revision", 1))
        assert not session.lost


async def test_a_race_has_one_winner(server: RedisServer) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second, Gateway(server.url, "3") as third:
        session = new_session(first, 20)
        await written(server, session)
        copies = await asyncio.gather(*(resume(gateway, session.handle) for gateway in (second, third)))
        for copy in copies:
            say(copy.history, 10, random.Random(id(copy)))
        await written(server, *copies)
        assert sorted(copy.lost for copy in copies) == [False, True]
        (winner,) = (copy for copy in copies if not copy.lost)
        again = await resume(first, session.handle)
        assert again.history.to_proto() == winner.history.to_proto()


async def test_what_the_owner_writes_until_it_is_taken_over_is_forgotten(server: RedisServer) -> None:
    """Its caller has got no answer after those that were read, and says the rest again."""
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session, heard = new_session(first, 20), Heard()
        session.listen(heard.listener)
        await written(server, session)
        seen, record = await second.read(Handle(session.handle))
        say(session.history, 10)
        await written(server, session)
        assert not heard.lost
        copy = await second.take_over(Handle(session.handle), seen, record)
        say(session.history, 5)
        await until(lambda: heard.lost)
        await written(server, copy)
        again = await resume(first, session.handle)
        assert again.history.steps == 20 and again.history.to_proto() == copy.history.to_proto()


@pytest.mark.parametrize("change", ["taken over", "ended"])
async def test_a_session_that_another_has_or_nobody_is_not_taken_over(server: RedisServer, change: str) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second, Gateway(server.url, "3") as third:
        session = new_session(first, 20)
        await written(server, session)
        seen, record = await second.read(Handle(session.handle))
        if change == "taken over":
            await resume(third, session.handle)
        else:
            session.end("completed", keep=False)
            await written(server, session)
        with pytest.raises(ResumeUnavailable):
            await second.take_over(Handle(session.handle), seen, record)
        assert second.open == 0


async def test_a_rewound_history_replaces_the_journal(server: RedisServer) -> None:
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second:
        session = new_session(first, 20)
        await written(server, session)
        copy = await resume(second, session.handle, lambda record: record.history.rewind(12))
        assert copy.history.steps == 12
        say(copy.history, 3, random.Random(7))
        await written(server, copy)
        again = await resume(first, session.handle)
        assert again.history.to_proto() == copy.history.to_proto()


async def test_a_session_that_was_cut_off_expires(server: RedisServer) -> None:
    async with Gateway(server.url, grace_s=1.0) as sessions:
        session = new_session(sessions, 5)
        session.end("cancelled", keep=True)
        await written(server, session)
        copy = await resume(sessions, session.handle)
        assert copy.history.steps == 5
        copy.end("cancelled", keep=True)
        await until(lambda: not server.client.keys("*{*}:*"))
        with pytest.raises(UnknownSession):
            await resume(sessions, session.handle)


async def test_a_session_that_has_ended_leaves_its_record_only(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 5)
        await written(server, session)
        session.end("completed", keep=False)
        await written(server, session)
        (key,) = server.client.keys("*{*}:*")
        record = server.client.hgetall(key)
        assert record.items() >= {b"session": b"a session", b"state": b"ended", b"ended": b"completed"}.items()
        assert b"facts" not in record
        assert 0 < server.client.ttl(key) <= 600
        with pytest.raises(UnknownSession):
            await resume(sessions, session.handle)


async def test_redis_comes_back_empty(server: RedisServer) -> None:
    """Calls go on while it is away, and are told; then all of it is written again."""
    async with Gateway(server.url) as sessions:
        session, heard = new_session(sessions, 20), Heard()
        session.listen(heard.listener)
        await written(server, session)
        server.kill()
        say(session.history, 2 * session.history.most_kept + 300)  # more than is kept
        await until(lambda: heard.resumable == [False])
        with pytest.raises(ResumeUnavailable):
            await resume(sessions, session.handle)
        born_meanwhile, late = new_session(sessions, 9), Heard()
        born_meanwhile.listen(late.listener)
        assert late.resumable == [False]
        server.start()
        await until(lambda: heard.resumable == late.resumable == [False, True])
        # What was said is true: it has been written.
        for one in (session, born_meanwhile):
            copy = await resume(sessions, one.handle)
            assert copy.history.to_proto() == one.history.to_proto()


async def test_redis_that_hangs_is_away(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 20)
        await written(server, session)
        server.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(ResumeUnavailable):
            await resume(sessions, session.handle)
        assert time.monotonic() - began < 10
        server.process.send_signal(signal.SIGCONT)
        await until(lambda: sessions.store.available)
        assert (await resume(sessions, session.handle)).history.steps == 20


async def test_a_full_redis_is_told_once(server: RedisServer) -> None:
    """Each session is told once that it could not be resumed, and once that it could, when it has been written."""
    now = time.monotonic()
    async with Gateway(server.url, now=lambda: now) as sessions:
        calls = [(new_session(sessions, 10), Heard()) for _ in range(10)]
        for session, heard in calls:
            session.listen(heard.listener)
        await written(server, *(session for session, _ in calls))
        server.client.config_set("maxmemory", 1)
        for session, _ in calls:
            say(session.history, 10)
        await until(lambda: all(heard.resumable == [False] for _, heard in calls))
        before = server.client.info("commandstats")["cmdstat_eval"]["calls"]

        def tried_again() -> bool:
            """A refusal that is on its way counts from when it comes, so the clock must go on."""
            nonlocal now
            now += REFUSED_RETRY_S
            return bool(server.client.info("commandstats")["cmdstat_eval"]["calls"] >= before + 3 * len(calls))

        await until(tried_again)  # in vain
        assert all(heard.resumable == [False] for _, heard in calls)
        assert sessions.store.available
        with pytest.raises(ResumeUnavailable, match="OOM"):
            await resume(sessions, calls[0][0].handle)
        server.client.config_set("maxmemory", 0)
        await until(lambda: tried_again() and all(heard.resumable == [False, True] for _, heard in calls))
        assert (await resume(sessions, calls[0][0].handle)).history.steps == 20


async def test_a_key_of_another_type_concerns_its_session_only(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        (session, heard), (other, others) = ((new_session(sessions, 10), Heard()) for _ in range(2))
        session.listen(heard.listener)
        other.listen(others.listener)
        await written(server, session, other)
        _, journal = keys_of(Handle(session.handle).name)
        server.client.set(journal, "not a list")
        say(session.history, 10)
        await until(lambda: heard.resumable == [False])
        say(other.history, 10)
        await written(server, other)
        assert (others.resumable, sessions.store.available) == ([], True)
        with pytest.raises(ResumeUnavailable, match="WRONGTYPE"):
            await resume(sessions, session.handle)
        assert (await resume(sessions, other.handle)).history.steps == 20


async def test_two_who_have_one_fence(server: RedisServer) -> None:
    """A fail-over of Redis loses that the session was taken over; then another gateway gets the same token."""
    async with Gateway(server.url) as first, Gateway(server.url, "two") as second, Gateway(server.url, "3") as third:
        session = new_session(first, 20)
        await written(server, session)
        session.lost = True
        copy = await resume(second, session.handle)
        record, _ = keys_of(Handle(session.handle).name)
        server.client.hincrby(record, "fence", -1)
        other = await resume(third, session.handle)
        await written(server, copy, other)
        assert (copy.lost, other.lost) == (True, False)


async def test_a_lost_write_is_mended(server: RedisServer) -> None:
    """A replica that became the master may lack the last writes of the old one."""
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 20)
        await written(server, session)
        say(session.history, 20)
        await written(server, session)
        _, journal = keys_of(Handle(session.handle).name)
        server.client.rpop(journal)
        say(session.history, 20)
        await written(server, session)
        copy = await resume(sessions, session.handle)
        assert copy.history.to_proto() == session.history.to_proto()


async def test_the_age_of_a_call_is_its_speaking_time(server: RedisServer) -> None:
    """Clocks of two machines have nothing in common, and the time between cut and resumption is not counted."""
    first_now, second_now = 1000.0, -5e8
    async with (Gateway(server.url, now=lambda: first_now) as first,
                Gateway(server.url, "two", now=lambda: second_now) as second):
        session = new_session(first, 5)
        first_now += 600.0
        assert session.age_s == 600.0
        say(session.history, 5)
        await written(server, session)
        session.end("cancelled", keep=True)
        await written(server, session)
        second_now += 86_400.0
        seen: list[float] = []
        copy = await resume(second, session.handle, lambda record: seen.append(record.age_s))
        assert seen == [600.0]
        second_now += 30.0
        assert copy.age_s == 630.0


async def test_nothing_in_redis_is_readable(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 60)
        await written(server, session)
        proto, chunk = session.history.to_proto(), session.history.chunk(0)
        dump = b"".join(key + (server.client.dump(key) or b"") for key in server.client.keys("*"))
        plain = [session.handle.encode(), session.sampling.SerializeToString(), chunk.user_codes, chunk.tokens,
                 bytes(proto.SerializeToString()[8:40])]
        # No three tokens in a row, in either byte order.
        for row in range(0, len(proto.tokens) - 3, 3):
            three = proto.tokens[row:row + 3]
            plain += [b"".join(token.to_bytes(2, order) for token in three) for order in ("little", "big")]
        for secret in plain:
            assert secret not in dump


async def test_a_damaged_journal_is_not_resumed(server: RedisServer) -> None:
    async with Gateway(server.url) as sessions:
        session = new_session(sessions, 20)
        await written(server, session)
        _, journal = keys_of(Handle(session.handle).name)
        chunk = server.client.lindex(journal, 0)
        assert chunk is not None
        server.client.lset(journal, 0, bytes([chunk[0] ^ 1]) + chunk[1:])
        with pytest.raises(UnknownSession):
            await resume(sessions, session.handle)
        assert not session.lost


@pytest.mark.parametrize("handle", ["", "x", "ü" * 43, "A" * 42, "A" * 43, "A" * 44, "=" * 43, "A" * 10_000])
async def test_handles_that_nobody_gave(server: RedisServer, handle: str) -> None:
    async with Gateway(server.url) as sessions:
        with pytest.raises(UnknownSession):
            await resume(sessions, handle)
