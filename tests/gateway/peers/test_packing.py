"""Which replica is emptied."""

from __future__ import annotations

import random

from services.gateway.peers.packing import BEGIN_SHARE, STOP_SHARE, Load, to_empty


def loads(*used: int, total: int = 8) -> list[Load]:
    return [Load(f"lm-{number}", one, total) for number, one in enumerate(used)]


def test_it_is_the_emptiest_when_the_others_have_room_for_all() -> None:
    assert to_empty(loads(5, 2, 3)) == "lm-1"
    assert to_empty(loads(0, 0, 0)) == "lm-0"  # the same for every gateway
    assert to_empty(loads(8, 1, 8)) == ""  # full, with or without it


def test_two_replicas_stay_two() -> None:
    assert to_empty(loads(0, 0)) == to_empty(loads(0)) == to_empty([]) == ""


def test_some_new_callers_do_not_turn_it_back() -> None:
    assert to_empty(loads(5, 1, 5), emptying="lm-1") == "lm-1"  # 11 of 16
    assert to_empty(loads(5, 1, 5)) == ""  # but it would not begin
    assert to_empty(loads(6, 1, 6), emptying="lm-1") == ""


def test_the_others_are_never_filled_further_than_they_may_be() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        found = loads(*(chance.randint(0, 8) for _ in range(chance.randint(1, 12))))
        before = f"lm-{chance.randint(0, 12)}"
        chosen = to_empty(found, before)
        if chosen:
            others = sum(load.total for load in found if load.address != chosen)
            used = sum(load.used for load in found)
            assert used <= (STOP_SHARE if before == chosen else BEGIN_SHARE) * others
            assert all(load.used >= next(one.used for one in found if one.address == chosen) for load in found)
