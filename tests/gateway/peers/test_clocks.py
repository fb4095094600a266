"""The offset of another clock, from frames whose ways there and back the test makes up."""

from __future__ import annotations

import random

import pytest

from services.gateway.peers.clocks import TRUSTED_NANOS, WINDOW_NANOS, PeerClock

MS = 1_000_000


class Peer:
    """A service with a clock that is wrong, behind a network; time is the test's."""

    def __init__(self, offset: int) -> None:
        self.offset, self.now, self.clock = offset, 10**18, PeerClock()

    def frame(self, there: int, back: int, service: int = 20 * MS) -> None:
        sent = self.now
        received = sent + there
        finished = received + service
        self.now = finished + back
        self.clock.add(sent, received + self.offset, finished + self.offset, self.now)


@pytest.mark.parametrize("offset", [500 * MS, -3000 * MS, 7 * MS])
def test_the_quickest_ways_draw_the_offset(offset: int) -> None:
    peer, noise = Peer(offset), random.Random(1)
    for _ in range(200):
        peer.frame(int(noise.expovariate(1 / (3 * MS))) + MS // 5, int(noise.expovariate(1 / (3 * MS))) + MS // 5)
    found, uncertain = peer.clock.offset()
    assert abs(found - offset) < MS and not uncertain


def test_clocks_that_agree_are_not_corrected() -> None:
    peer = Peer(0)
    for _ in range(10):
        peer.frame(MS, 2 * MS)  # half a millisecond apart, if one would believe the middle
    assert peer.clock.offset() == (0, False)


def test_what_is_not_known_is_said() -> None:
    peer = Peer(500 * MS)
    assert peer.clock.offset() == (0, True)
    for _ in range(10):
        peer.frame(10 * MS, 10 * MS)
    found, uncertain = peer.clock.offset()
    assert abs(found - 500 * MS) <= 10 * MS and uncertain
    peer.frame(TRUSTED_NANOS, TRUSTED_NANOS - 1)
    assert not peer.clock.offset()[1]


def test_old_frames_are_forgotten_and_a_new_clock_is_learnt() -> None:
    peer = Peer(500 * MS)
    peer.frame(MS, MS)
    peer.now += 2 * WINDOW_NANOS
    peer.offset = -200 * MS  # another process has come at the same address
    peer.frame(MS, MS)
    assert peer.clock.offset()[0] == pytest.approx(-200 * MS, abs=MS)  # it contradicts the window before
    peer.now += 2 * WINDOW_NANOS
    peer.frame(8 * MS, 8 * MS)
    peer.now += 2 * WINDOW_NANOS
    peer.frame(8 * MS, 8 * MS)
    assert peer.clock.offset() == (pytest.approx(-200 * MS, abs=8 * MS), True)  # nothing of the quick ones is left
