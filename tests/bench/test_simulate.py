"""The simulation is right about what was measured, and its own books are in order."""

from __future__ import annotations

import pytest

from bench.simulate import error_of_capacity, rows_that_fit, subsets, tick_ms
from bench.simulation.fleet import Fleet, Policy, day, steady
from bench.simulation.machine import Machine, run


@pytest.mark.slow
def test_one_machine_holds_as_many_callers_as_were_measured() -> None:
    _, error = error_of_capacity()
    assert error < 0.1


def test_the_mesh_takes_the_cpu_that_was_measured() -> None:
    assert run(Machine(), 8, 10.0).cores == pytest.approx(1.03, rel=0.05)
    assert run(Machine(), 27, 10.0).cores == pytest.approx(1.56, rel=0.2)  # not what it was fitted to


def test_a_seed_gives_the_same_run() -> None:
    def once(seed: int) -> list[tuple[float, int, int, int]]:
        return Fleet(Policy(loss_every_s=600.0), day(60, 1.0), 120.0, seed, 4).run(3600).series

    assert once(1) == once(1) != once(2)


@pytest.mark.parametrize("seed", range(4))
def test_no_call_is_in_two_places_and_no_replica_holds_more_than_it_can(seed: int) -> None:
    fleet = Fleet(Policy(loss_every_s=300.0, load_s=60.0), day(80, 1.0), 120.0, seed, 4)
    for until_s in range(60, 3600, 60):
        fleet.run(until_s)
        held = [call for replica in fleet.replicas for call in replica.calls]
        assert len(held) == len(set(held)) == len(fleet._place)
        assert all(len(replica.calls) <= 8 for replica in fleet.replicas)


def test_calls_are_lost_only_when_there_is_no_room() -> None:
    roomy = Fleet(Policy(threshold=4.0, loss_every_s=600.0), steady(60), 120.0, 1, 20).run(7200)
    assert roomy.failed_over > 0 and roomy.lost == 0


def test_the_emptiest_replica_has_fewer_calls_to_move() -> None:
    any_one = Fleet(Policy(emptiest=False, defragment=False), day(100, 2.0), 120.0, 1, 4).run(7200)
    packed = Fleet(Policy(), day(100, 2.0), 120.0, 1, 4).run(7200)
    assert packed.most_moved_at_once < any_one.most_moved_at_once
    assert packed.moved_by_drain < any_one.moved_by_drain


def test_few_known_replicas_are_enough() -> None:
    assert subsets(200, 8)["refused"] > subsets(200, 32)["refused"] == 0


def test_a_gpu_s_floor_is_that_of_its_bandwidth() -> None:
    assert tick_ms("bf16", 1) == pytest.approx(4.9, abs=0.1)
    assert tick_ms("bf16", 32) == pytest.approx(19.4, abs=0.1)
    assert rows_that_fit("bf16") in (41, 42)
