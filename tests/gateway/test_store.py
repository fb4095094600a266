"""The store: one Redis in each of its forms, what it refuses, and what it may not be told."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from harness.certificates import Authority
from harness.local_mesh import free_port
from services.gateway.calls.limits import Limits
from services.gateway.calls.waiting import WaitingLine
from services.gateway.peers.registry import Registry
from services.gateway.sessions.sessions import Sessions
from services.gateway.store import MOST_AT_ONCE, Request, RequestRefused, Store, StoreAway
from services.gateway.trust.tickets import Tickets
from services.mesh.errors import PeerLost, ResumeUnavailable
from tests.gateway.redis_server import RedisServer, certificate_in, redis_with_tls
from tests.gateway.sessions.gateways import Gateway, new_session, resume, say, written
from tests.until import until

PROBES = (Sessions.probes, WaitingLine.probes, Limits.probes, Tickets.probes, Registry.probes)
SET = "return redis.call('SET', KEYS[1], ARGV[1])"
PUSH = "return redis.call('RPUSH', KEYS[1], ARGV[1])"
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[Store]:
    store = Store(server.url)
    await store.connect()
    yield store
    await store.close()


def commands_of_scripts() -> set[str]:
    """Every command that a script of the gateway names."""
    return {command for path in (ROOT / "services" / "gateway").rglob("*.py")
            for command in re.findall(r"redis\.call\('(\w+)'", path.read_text())}


def acl() -> list[str]:
    """The rules of docs/sessions.md."""
    page = (ROOT / "docs" / "sessions.md").read_text()
    (rules,) = re.findall(r"ACL SETUSER \S+ on \S+ (~moshimesh:\* .*?)\n```", page, re.DOTALL)
    return rules.replace("\\\n", " ").split()


async def test_a_refused_request_concerns_nobody_else(store: Store, server: RedisServer) -> None:
    heard: list[bool] = []
    store.on_change.add(heard.append)
    server.client.set("moshimesh:{a}:x", "not a list")
    answers = await store.run_all([Request(PUSH, (f"moshimesh:{{{key}}}:x",), (1,)) for key in "bab"])
    assert (answers[0], answers[2]) == (1, 2)
    assert isinstance(answers[1], RequestRefused) and answers[1].code == "WRONGTYPE"
    with pytest.raises(RequestRefused):
        await store.run(Request(PUSH, ("moshimesh:{a}:x",), (1,)))
    assert (store.available, heard) == (True, [])


async def test_a_full_redis_refuses_what_needs_room(store: Store, server: RedisServer, caplog: pytest.LogCaptureFixture
                                                    ) -> None:
    server.client.config_set("maxmemory", 1)
    for _ in range(20):
        with pytest.raises(RequestRefused) as caught:
            await store.run(Request(SET, ("moshimesh:{a}:x",), ("what was said",)))
        assert caught.value.code == "OOM"
    assert store.available
    assert caplog.text.count("refused a request") == 1 and "what was said" not in caplog.text
    assert await store.run(Request("return redis.call('GET', KEYS[1])", ("moshimesh:{a}:x",))) is None


async def test_a_replica_is_no_redis_to_write_to(server: RedisServer, store: Store) -> None:
    master = RedisServer()
    server.client.replicaof("127.0.0.1", master.port)
    with pytest.raises(StoreAway):
        await store.run(Request(SET, ("moshimesh:{a}:x",), (1,)))
    server.client.replicaof("NO", "ONE")
    await until(lambda: store.available)
    assert await store.run(Request(SET, ("moshimesh:{a}:x",), (1,))) == b"OK"
    master.close()


async def test_two_thousand_callers_at_once_are_no_outage(store: Store, server: RedisServer) -> None:
    """They wait for one another on a few connections; together they take longer than one answer may."""
    heard: list[bool] = []
    store.on_change.add(heard.append)
    slow = Request("for _ = 1, 200000 do end return 1", ("moshimesh:{a}:x",))
    answers = await asyncio.gather(*(store.run(slow) for _ in range(2000)))
    assert (len(answers), heard) == (2000, [])
    assert server.client.info("clients")["connected_clients"] <= MOST_AT_ONCE + 2


async def test_callers_who_wait_for_their_turn_hear_that_redis_is_gone(store: Store, server: RedisServer) -> None:
    server.client.client_pause(60_000)
    began = time.monotonic()
    answers = await asyncio.gather(*(store.run(Request("return 1", ("moshimesh:{a}:x",))) for _ in range(200)),
                                   return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreAway}
    assert time.monotonic() - began < 15.0  # and not 2 s for each 16 of them


async def test_a_probe_does_all_that_is_done_later(server: RedisServer) -> None:
    server.client.config_resetstat()
    store = Store(server.url)
    await store.connect(*PROBES)
    await store.close()
    ran = {name.removeprefix("cmdstat_") for name in server.client.info("commandstats")}
    assert {command.lower() for command in commands_of_scripts()} - ran == set()
    await until(lambda: not server.client.keys("*"), 5)


def user_with(server: RedisServer, *rules: str) -> str:
    """The URL of a user with these rules only."""
    server.client.execute_command("ACL", "SETUSER", "gateway", "reset", "on", ">of%gateway", *rules)
    return server.url.replace("//", "//gateway:of%25gateway@")


async def test_a_user_needs_no_more_than_the_documents_say(server: RedisServer) -> None:
    store = Store(user_with(server, *acl()))
    await store.connect(*PROBES)
    await store.close()
    assert {rule.removeprefix("+") for rule in acl() if rule.startswith("+")} == {
        *(command.lower() for command in commands_of_scripts()), "eval", "set"}


@pytest.mark.parametrize(("rules", "names"), [
    (["~moshimesh:*", "+@all", "-hincrby"], "HINCRBY"), (["~moshimesh:*", "+@all", "-zremrangebyscore"], "ZREMRANGE"),
    (["~moshimesh:*", "+@all", "-eval"], "EVAL"), (["~moshimesh:*", "+@all", "-set"], "SET"),
    (["~moshimesh:*", "+@all", "-ltrim"], "LTRIM"), (["~mesh:*", "+@all"], "keys moshimesh:*"),
    (["~moshimesh:{probe*", "+@all"], "keys moshimesh:*")])
async def test_a_right_that_is_missing_is_named_at_the_start(server: RedisServer, rules: list[str], names: str,
                                                             caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = Store(user_with(server, *rules))
    with pytest.raises(ValueError, match=r"docs/sessions\.md") as caught:
        await store.connect(*PROBES)
    await store.close()
    assert names in str(caught.value) and "\n" not in str(caught.value)
    assert "of%" not in str(caught.value) + caplog.text
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []  # it is one line


async def test_a_full_redis_at_the_start_is_not_one_without_rights(server: RedisServer) -> None:
    server.client.config_set("maxmemory", 1)
    store = Store(server.url)
    await store.connect(*PROBES)
    assert store.available
    await store.close()


@pytest.mark.parametrize("user", ["", ":of%25someone@", "someone:of%25someone@"])
async def test_a_wrong_password_is_not_repeated(user: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = RedisServer(password="another")
    store = Store(server.url.replace("//", f"//{user}"))
    with pytest.raises(PeerLost) as caught:
        await store.connect(*PROBES)
    await store.close()
    server.close()
    assert "of%" not in str(caught.value) + caplog.text and f"127.0.0.1:{server.port}/0" in str(caught.value)


async def test_no_redis_at_the_start_is_an_error_that_says_what_to_do() -> None:
    store = Store(f"redis://:of%25someone@127.0.0.1:{free_port()}/0")
    with pytest.raises(PeerLost, match="--redis-url") as caught:
        await store.connect()
    assert "someone" not in str(caught.value)
    await store.close()


class Sentinels:
    """A master, its replica, and a sentinel that watches them."""

    def __init__(self, flags: list[str], rules: Callable[[int], str], **options: object) -> None:
        self.master = RedisServer(*flags, **options)
        replica_of = ("--replicaof", "127.0.0.1", str(self.master.port))
        self.replica = RedisServer(*flags, *replica_of, **options)
        self._options = options
        self._rules = rules

    async def __aenter__(self) -> Sentinels:
        await until(lambda: self.replica.client.info("replication")["master_link_status"] == "up")
        self.sentinel = RedisServer("--sentinel", config="\n".join([
            f"sentinel monitor calls 127.0.0.1 {self.master.port} 1", "sentinel down-after-milliseconds calls 1000",
            "sentinel failover-timeout calls 3000", self._rules(self.master.port)]), **self._options)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in (self.sentinel, self.replica, self.master):
            server.close()


async def survives_its_master(url: str, sentinels: Sentinels) -> None:
    async with Gateway(url) as sessions:
        session = new_session(sessions, 20)
        await written(sentinels.master, session)
        sentinels.master.kill()
        say(session.history, 20)
        await until(lambda: not sessions.store.available)
        await until(lambda: sessions.store.available, 40)
        await written(sentinels.replica, session)
        while True:  # on a busy machine the sentinel may take its new master for lost, too, for a moment
            try:
                resumed = await resume(sessions, session.handle)
                break
            except ResumeUnavailable:
                await asyncio.sleep(0.1)
        assert resumed.history.to_proto() == session.history.to_proto()


async def test_a_master_that_is_lost() -> None:
    async with Sentinels(["--repl-diskless-sync-delay", "0"], lambda port: "") as sentinels:
        await survives_its_master(f"redis+sentinel://127.0.0.1:{sentinels.sentinel.port}/calls/0", sentinels)


async def test_a_master_and_sentinels_with_passwords_of_their_own() -> None:
    flags = ["--repl-diskless-sync-delay", "0", "--masterauth", "of/master"]
    async with Sentinels(flags, lambda port: "sentinel auth-pass calls of/master", password="of/master") as sentinels:
        where = f"127.0.0.1:{sentinels.sentinel.port}/calls/0"
        for wrong in (f"redis+sentinel://:of%2Fmaster@{where}",
                      f"redis+sentinel://{where}?sentinel_password=of%2Fmaster"):
            store = Store(wrong)
            with pytest.raises(PeerLost):
                await store.connect()
            await store.close()
        await survives_its_master(f"redis+sentinel://:of%2Fmaster@{where}?sentinel_password=of%2Fmaster", sentinels)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[str, Path]:
    """A server that does TLS, and a certificate for it."""
    program = redis_with_tls()
    if program is None:
        pytest.skip("there is no redis-server with TLS, and Debian's could not be fetched")
    return program, certificate_in(tmp_path)


async def test_sentinels_and_their_servers_with_tls(tls: tuple[str, Path]) -> None:
    program, certificate = tls
    async with Sentinels(["--repl-diskless-sync-delay", "0"], lambda port: "", program=program, certificate=certificate
                         ) as sentinels:
        where = f"127.0.0.1:{sentinels.sentinel.port}/calls/0"
        for wrong in (f"redis+sentinel://{where}", f"rediss+sentinel://{where}"):  # in plain text; with an unknown CA
            store = Store(wrong)
            with pytest.raises(PeerLost):
                await store.connect()
            await store.close()
        ca = certificate.with_name("ca.pem")
        await survives_its_master(f"rediss+sentinel://{where}?ssl_ca_certs={ca}", sentinels)


async def test_a_single_server_with_tls_and_a_password(tls: tuple[str, Path]) -> None:
    program, certificate = tls
    server = RedisServer(program=program, certificate=certificate, password="of#server")
    url = f"rediss://:of%23server@127.0.0.1:{server.port}/0?ssl_ca_certs={certificate.with_name('ca.pem')}"
    async with Gateway(url) as sessions:
        session = new_session(sessions, 20)
        await written(server, session)
        assert (await resume(sessions, session.handle)).history.steps == 20
    server.close()


async def test_a_server_that_asks_for_a_certificate(tls: tuple[str, Path], tmp_path: Path) -> None:
    program, certificate = tls
    server = RedisServer(program=program, certificate=certificate, asks=True)
    ca, ours, key = (certificate.with_name(name) for name in ("ca.pem", "redis.pem", "redis.key"))
    chain, other_key = Authority("another CA").issue().write(tmp_path, "stranger")
    for wrong in ("", f"?ssl_ca_certs={ca}", f"?ssl_certfile={ours}&ssl_keyfile={key}",
                  f"?ssl_ca_certs={ca}&ssl_certfile={chain}&ssl_keyfile={other_key}"):
        store = Store(f"rediss://127.0.0.1:{server.port}/0{wrong}")
        with pytest.raises(PeerLost):
            await store.connect()
        await store.close()
    async with Gateway(f"rediss://localhost:{server.port}/0?ssl_ca_certs={ca}&ssl_certfile={ours}&ssl_keyfile={key}"
                       ) as sessions:
        session = new_session(sessions, 20)
        await written(server, session)
        assert (await resume(sessions, session.handle)).history.steps == 20
    server.close()


async def test_a_redis_that_comes_back_with_another_ca_is_met_with_the_new_files(tls: tuple[str, Path]) -> None:
    """The redis package reads them once for each connection object that it keeps."""
    program, certificate = tls
    ca, ours, key = (certificate.with_name(name) for name in ("ca.pem", "redis.pem", "redis.key"))
    server = RedisServer(program=program, certificate=certificate, asks=True)
    store = Store(f"rediss://127.0.0.1:{server.port}/0?ssl_ca_certs={ca}&ssl_certfile={ours}&ssl_keyfile={key}")
    await store.connect()
    server.kill()
    with pytest.raises(StoreAway):
        await store.run(Request(SET, ("moshimesh:{a}:x",), (1,)))
    certificate_in(certificate.parent)
    server.start()
    await until(lambda: store.available)
    await store.run(Request(SET, ("moshimesh:{a}:x",), (1,)))
    await store.close()
    server.close()


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster", "rediss+sentinel"])
@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_file_of_the_url_that_is_not_there_is_named_by_its_option(scheme: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"--redis-url: the file of {option} can't be read") as caught:
        Store(f"{scheme}://h:1/{'calls' if 'sentinel' in scheme else ''}?{option}=/secret57.pem")
    assert "57" not in str(caught.value)


async def test_a_right_that_is_missing_is_named_by_redis_7_too(tls: tuple[str, Path]) -> None:
    program, _ = tls
    server = RedisServer(program=program)
    for rules, names in ((["~moshimesh:*", "+@all", "-zrank"], "ZRANK"), (["~moshimesh:*", "+@all", "-eval"], "EVAL"),
                         (["~moshimesh:{probe}", "+@all"], "moshimesh:*")):
        store = Store(user_with(server, *rules))
        with pytest.raises(ValueError, match=re.escape(names)):
            await store.connect(*PROBES)
        await store.close()
    store = Store(user_with(server, *acl()))
    await store.connect(*PROBES)
    server.client.set("moshimesh:{a}:x", "not a list")
    with pytest.raises(RequestRefused) as caught:
        await store.run(Request(PUSH, ("moshimesh:{a}:x",), (1,)))
    assert caught.value.code == "WRONGTYPE"
    server.client.config_set("maxmemory", 1)
    with pytest.raises(RequestRefused) as caught:
        await store.run(Request(SET, ("moshimesh:{b}:x",), (1,)))
    assert caught.value.code == "OOM" and store.available
    await store.close()
    server.close()


async def test_a_cancellation_is_not_lost(store: Store) -> None:
    """Whoever leaves while the loop is busy (asleep, here) and Redis has answered has left."""
    for turns in range(20):
        task = asyncio.create_task(store.run(Request(SET, ("moshimesh:key",), (1,))))
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.005)  # noqa: ASYNC251
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            assert task.cancelled()


async def test_a_cluster() -> None:
    nodes = [RedisServer("--cluster-enabled", "yes") for _ in range(3)]
    try:
        for number, node in enumerate(nodes):  # what `redis-cli --cluster create` does; not every server brings one
            node.client.cluster("addslots", *range(number * 16384 // 3, (number + 1) * 16384 // 3))
            node.client.cluster("set-config-epoch", number + 1)
            for other in nodes[:number]:
                node.client.cluster("meet", "127.0.0.1", other.port)
        await until(lambda: all(node.client.cluster("info")["cluster_state"] == "ok" for node in nodes), 10)
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        async with Gateway(url) as first, Gateway(url, "two") as second:
            many = [new_session(first, 20) for _ in range(40)]  # each of three nodes has some
            await until(lambda: sum(node.client.dbsize() for node in nodes) >= 2 * len(many))
            for session in many:
                copy = await resume(second, session.handle)
                assert copy.history.to_proto() == session.history.to_proto()
            assert all(node.client.dbsize() for node in nodes)
    finally:
        for node in nodes:
            node.close()


@pytest.mark.parametrize(("options", "says"), [
    ("/99", "refuses what the URL asks for"), ("/0?nonsense=Wc57", "none of the redis package's: nonsense"),
    ("/0?socket_timeout=Wc57", "'socket_timeout'")])
async def test_an_option_that_is_wrong_is_named_at_the_start(server: RedisServer, options: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"--redis-url: .*{re.escape(says)}") as caught:
        await Store(server.url.removesuffix("/0") + options).connect()
    assert "Wc57" not in str(caught.value)
