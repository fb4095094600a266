"""Each gateway of a large fleet knows some of its replicas, always the same ones."""

from __future__ import annotations

import time
from collections import Counter

from services.gateway.peers.replicas import STEP, Replicas, lm_facts
from services.gateway.peers.subset import subset
from tests.gateway.fake_lm import FakeLm
from tests.until import until

FLEET = [f"10.0.{number // 250}.{number % 250}:50052" for number in range(400)]


def test_it_is_the_same_whatever_the_order() -> None:
    assert subset(FLEET, "a", 32) == subset(FLEET[::-1], "a", 32)
    assert len(subset(FLEET, "a", 32)) == 32
    assert subset(FLEET, "a", 32) != subset(FLEET, "b", 32)


def test_a_small_fleet_is_known_whole() -> None:
    assert subset(FLEET[:5], "a", 32) == set(FLEET[:5])
    assert subset(FLEET, "a", 0) == set(FLEET)


def test_a_replica_that_goes_changes_one_place_of_those_who_had_it() -> None:
    for gateway in ("a", "b", "c"):
        before = subset(FLEET, gateway, 32)
        for gone in FLEET[:50]:
            after = subset([address for address in FLEET if address != gone], gateway, 32)
            assert len(before - after) == (gone in before)


def test_replicas_are_known_by_about_as_many_gateways() -> None:
    known = Counter(address for gateway in range(200) for address in subset(FLEET, f"gateway-{gateway}", 32))
    assert len(known) == len(FLEET)
    assert max(known.values()) < 3 * 200 * 32 / len(FLEET)


async def test_a_gateway_has_connections_to_its_own_alone() -> None:
    lms = [FakeLm(slots=4) for _ in range(6)]
    addresses = [await lm.start() for lm in lms]
    pool = Replicas("lm", ",".join(addresses), lm_facts, most=2, gateway="a")
    await pool.connect(time.monotonic() + 10)
    await until(lambda: len(pool.answering) == 2)
    assert {replica.address for replica in pool.known} == subset(addresses, "a", 2)
    await pool.close()
    for lm in lms:
        await lm.kill()


async def test_calls_stay_at_a_replica_that_falls_to_another_gateway() -> None:
    lms = [FakeLm(slots=4) for _ in range(4)]
    addresses = [await lm.start() for lm in lms]
    both = subset(addresses, "a", 1) | {next(iter(set(addresses) - subset(addresses, "a", 1)))}
    (later,) = subset(both, "a", 1)
    (first,) = both - {later}
    pool = Replicas("lm", first, lm_facts, most=1, gateway="a")
    await pool.connect(time.monotonic() + 10)
    old = await pool.pick(STEP.name, "checksum")
    call = old.tunnel.call(STEP)
    pool._targets = [first, later]  # the name has one more address, which ranks higher
    await until(lambda: len(pool.answering) == 2)
    assert {(await pool.pick(STEP.name, "checksum")).address for _ in range(4)} == {later}
    assert not call.ended and old in pool.known
    call.cancel()
    old.tunnel.stream._calls.clear()  # as when the service has said that it ended
    await until(lambda: [replica.address for replica in pool.known] == [later])
    await pool.close()
    for lm in lms:
        await lm.kill()
