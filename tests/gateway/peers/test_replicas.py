"""Who the replicas are, asked for real: through gRPC, at addresses that come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from services.gateway.peers.replicas import STEP, Replicas, codec_facts, lm_facts
from services.mesh.errors import MeshError, NoFreeSlot, PeerLost
from tests.gateway.fake_lm import FakeLm
from tests.until import until

MODEL = "checksum"


@pytest.fixture
async def lms() -> AsyncIterator[list[FakeLm]]:
    lms = [FakeLm(slots=4), FakeLm(slots=4)]
    for lm in lms:
        await lm.start(host="0.0.0.0")
    yield lms
    for lm in lms:
        await lm.kill()


async def connected(*targets: str) -> Replicas:
    pool = Replicas("lm", ",".join(targets), lm_facts)
    await pool.connect(time.monotonic() + 10)
    return pool


async def test_their_slots_are_added_up(lms: list[FakeLm]) -> None:
    lms[0].held = 3
    pool = await connected(*(f"127.0.0.1:{lm.port}" for lm in lms))
    assert (pool.total(STEP.name, MODEL), pool.free(STEP.name, MODEL)) == (8, 5)
    assert (pool.total(STEP.name, "another"), pool.free(STEP.name, "another")) == (0, 0)
    await pool.close()


async def test_one_process_at_two_addresses_is_one_replica(lms: list[FakeLm]) -> None:
    """A name with an A and an AAAA record once doubled the slots."""
    port = lms[0].port
    pool = await connected(f"127.0.0.1:{port}", f"127.0.0.2:{port}", f"127.0.0.1:{lms[1].port}")
    await pool._ask_all()
    assert pool.total(STEP.name, MODEL) == 8 and len(pool.answering) == 2
    assert {replica.address for replica in pool.known} == {f"127.0.0.1:{port}", f"127.0.0.1:{lms[1].port}"}
    await pool.close()


async def test_a_session_goes_where_there_is_room(lms: list[FakeLm]) -> None:
    lms[0].held = 4
    pool = await connected(*(f"127.0.0.1:{lm.port}" for lm in lms))
    for _ in range(4):
        assert (await pool.pick(STEP.name, MODEL)).address == f"127.0.0.1:{lms[1].port}"
    lms[1].held = 4
    with pytest.raises(NoFreeSlot, match="all 8 slots"):
        await pool.pick(STEP.name, MODEL)
    lms[0].held = 3  # since the last poll
    assert (await pool.pick(STEP.name, MODEL)).address == f"127.0.0.1:{lms[0].port}"
    await pool.close()


async def test_a_replica_that_dies_is_noticed_and_found_again(lms: list[FakeLm]) -> None:
    pool = await connected(f"127.0.0.1:{lms[0].port}")
    port = lms[0].port
    await lms[0].kill()
    await until(lambda: not pool.answering)
    with pytest.raises(PeerLost):
        await pool.pick(STEP.name, MODEL)
    with pytest.raises(PeerLost):
        pool.info(MODEL)
    again = FakeLm()
    await again.start(port)
    await until(lambda: pool.answering)
    assert pool.info(MODEL).slots_total == 8
    await pool.close()
    await again.kill()


async def test_many_who_ask_at_once_share_the_answers(lms: list[FakeLm]) -> None:
    pool = await connected(f"127.0.0.1:{lms[0].port}")
    asked = 0
    get_info = pool._ask

    async def counted(channel):
        nonlocal asked
        asked += 1
        return await get_info(channel)

    pool._ask = counted
    await asyncio.gather(*(pool.refresh() for _ in range(100)))
    assert asked <= 2  # a poll may fall between
    asked = 0
    for _ in range(100):
        await pool.refresh(max_age_s=60)
    assert asked <= 1
    await pool.close()


async def test_what_listens_there_is_another_service(lms: list[FakeLm]) -> None:
    pool = Replicas("codec", f"127.0.0.1:{lms[0].port}", codec_facts)
    with pytest.raises(PeerLost, match="is not the codec service; correct --codec"):
        await pool.connect(time.monotonic() + 10)
    await pool.close()


async def test_nobody_is_there() -> None:
    pool = Replicas("lm", "127.0.0.1:9, no-such-host.invalid:1", lm_facts)
    with pytest.raises(MeshError, match=r"no lm service at 127\.0\.0\.1:9, no-such-host\.invalid:1 \(127\.0\.0\.1:9: "):
        await pool.connect(time.monotonic() + 0.1)
    await pool.close()
