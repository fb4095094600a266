"""Replicas that are called with TLS: their names, and what happens when our certificate is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from harness.certificates import Authority, Certificate
from services.gateway.path.observer import Change
from services.gateway.peers.replicas import Replicas, lm_facts
from services.mesh.errors import PeerLost
from services.mesh.tls import Identity
from tests.gateway.fake_lm import FakeLm
from tests.gateway.fake_observer import Heard
from tests.gateway.path.test_stage import FRAMES, Two, expected
from tests.until import until


class Site:
    """A CA, and who has a certificate of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ca = folder, Authority()

    def identity(self, name: str, certificate: Certificate | None = None, trusts: bytes = b"") -> Identity:
        """Who `name` is; by default of this CA, for localhost."""
        chain, key = (certificate or self.ca.issue()).write(self.folder, name)
        return Identity("--peer", str(chain), str(key), str(self.trust(name, trusts or self.ca.pem)))

    def trust(self, name: str, pem: bytes) -> Path:
        """Let `name` know other CAs."""
        path = self.folder / f"{name}-ca.pem"
        path.write_bytes(pem)
        return path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@contextlib.asynccontextmanager
async def serving(tls: Identity | None) -> AsyncIterator[FakeLm]:
    lm = FakeLm()
    await lm.start(tls=tls)
    try:
        yield lm
    finally:
        await lm.kill()


async def connect(target: str, tls: Identity | None, within_s: float = 10.0) -> None:
    pool = Replicas("lm", target, lm_facts, tls=tls)
    try:
        await pool.connect(time.monotonic() + within_s)
    finally:
        await pool.close()


async def test_a_certificate_is_for_the_name_that_is_called_not_for_its_addresses(site: Site, monkeypatch: Any) -> None:
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def resolved(host: str, port: int, **options: Any) -> list[Any]:
        """The headless service of two pods."""
        if host != "codec.mesh":
            return await resolve(host, port, **options)
        return [*await resolve("127.0.0.1", port, **options), *await resolve("127.0.0.2", port, **options)]

    monkeypatch.setattr(loop, "getaddrinfo", resolved)
    async with serving(site.identity("lm", site.ca.issue("codec.mesh"))) as lm:
        us = site.identity("gateway")
        await connect(f"codec.mesh:{lm.port}", us)
        with pytest.raises(PeerLost, match="is not for the name that we call it by"):
            await connect(f"127.0.0.1:{lm.port}", us, 1.0)


async def test_an_address_is_a_name_as_well(site: Site) -> None:
    async with serving(site.identity("lm", site.ca.issue("127.0.0.1"))) as lm:
        await connect(f"127.0.0.1:{lm.port}", site.identity("gateway"))


async def test_why_a_replica_can_t_be_called_is_said(site: Site) -> None:
    other = Authority("another CA")
    us, theirs = site.identity("gateway"), site.identity("lm")
    stranger = site.identity("stranger", other.issue())
    distrustful = site.identity("distrustful", trusts=other.pem)
    async with serving(theirs) as lm, serving(None) as plain:
        for target, tls, says in (
                (lm, None, "it may want TLS, see --peer-ca"), (lm, stranger, "may not know the CA of our --peer-cert"),
                (lm, distrustful, "is not of the CA in --peer-ca"), (plain, us, "it speaks in plain text")):
            with pytest.raises(PeerLost, match=says):
                await connect(f"localhost:{target.port}", tls, 1.0)


class TwoWithTls(Two):
    """Two replicas that want a certificate of ours."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def __aenter__(self) -> TwoWithTls:
        await super().__aenter__()
        await self.pool.close()
        for number, lm in enumerate(self.lms):
            await lm.kill()
            await lm.start(lm.port, tls=self.site.identity(f"lm-{number}"))
        self.us = self.site.identity("gateway")
        self.pool = Replicas("lm", ",".join(f"localhost:{lm.port}" for lm in self.lms), lm_facts, tls=self.us)
        await self.pool.connect(time.monotonic() + 10)
        self.before = list(self.pool.known)
        return self

    @property
    def handed_over(self) -> bool:
        return all(replica.pair is self.us.current for replica in self.pool.known)


async def replaced(two: Any, here: FakeLm, there: FakeLm) -> None:
    """A new certificate, and the frames go on when there are new connections beside the old ones."""
    two.site.ca.issue().write(two.site.folder, "gateway")
    await until(lambda: two.handed_over)


async def test_a_session_moves_to_the_new_connection_without_a_lost_frame(site: Site) -> None:
    async with TwoWithTls(site) as two:
        await asyncio.wait_for(two.talk(replaced, pace_s=0.05), 60)
        assert two.answers == expected()
        assert two.heard.changes == [Change.DRAINED]
        assert two.handed_over and not any(replica in two.before for replica in two.pool.known)
        await until(lambda: not any(lm.held for lm in two.lms))
        await until(lambda: not two.pool._leaving)  # the old connections are closed


@pytest.mark.slow
async def test_sessions_move_one_after_another_and_all_stay_whole(site: Site) -> None:
    """With one free slot, for five sessions."""
    async with TwoWithTls(site) as two:
        for lm in two.lms:
            lm.slots = 3
        await two.pool.refresh()
        others = [another(two) for _ in range(4)]
        await asyncio.wait_for(asyncio.gather(
            two.talk(replaced, 5, pace_s=0.1), *(other.talk(pace_s=0.15) for other in others)), 60)
        for one in (two, *others):
            assert one.answers == expected()
            assert one.heard.changes in ([], [Change.DRAINED])  # a busy machine may be at the end before
        assert any(one.heard.changes for one in (two, *others))


def another(two: TwoWithTls) -> Two:
    """Who talks in the same pool."""
    other = Two()
    other.lms, other.pool, other.heard = two.lms, two.pool, Heard()
    other.answer_s, other.answers, other.gaps = two.answer_s, [], []
    return other


async def test_without_a_free_slot_a_session_stays_where_it_is(site: Site) -> None:
    async with TwoWithTls(site) as two:
        for lm in two.lms:
            lm.slots = 1
        await two.pool.refresh()
        stay = await two.open_stage()  # takes the other slot
        await asyncio.wait_for(two.talk(replaced, 5, pace_s=0.05), 60)
        assert two.answers == expected() and two.heard.changes == []
        stay.close()
        await until(lambda: not two.pool._leaving)


async def test_a_new_certificate_that_is_not_taken_leaves_the_old_connection(site: Site, caplog: Any) -> None:
    """As when the gateway has a certificate of the next CA before the replicas know that."""
    following = Authority("the next CA")
    async with TwoWithTls(site) as two:
        async def too_early(_: Any, here: FakeLm, there: FakeLm) -> None:
            following.issue().write(site.folder, "gateway")
            await until(lambda: two.us.current is not two.before[0].pair)
            await until(lambda: len(two.pool._successors) == 2 and all(
                successor.refused for successor in two.pool._successors.values()))

        await asyncio.wait_for(two.talk(too_early), 60)
        assert two.answers == expected() and two.heard.changes == []
        assert len([line for line in caplog.messages if "can't be called with the new certificate" in line]) == 2
        assert two.pool.usable and set(two.pool.known) == set(two.before)
        for number, lm in enumerate(two.lms):  # now they know it
            site.trust(f"lm-{number}", site.ca.pem + following.pem)
            await lm.kill()
            await lm.start(lm.port, tls=Identity(
                "--peer", *(str(site.folder / f"lm-{number}{end}") for end in (".pem", ".key", "-ca.pem"))))
        await until(lambda: two.handed_over)
        await asyncio.wait_for(two.talk(), 60)
        assert two.answers == expected() * 2 and len(two.answers) == FRAMES * 2
