"""A link between two nodes that is slow, loses packets, or is cut."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bench.link import Link
from bench.nodes import Node, Nodes, usable

PORT, ROUNDS = 5000, 40
ECHO = f"""
import socket
server = socket.create_server(("0.0.0.0", {PORT}))
print("listening", flush=True)
peer, _ = server.accept()
while said := peer.recv(4096):
    peer.sendall(said)
"""


@pytest.fixture
def line() -> Iterator[tuple[Node, Link, socket.socket]]:
    """The far node, its link, and a connection to an echo there."""
    if reason := usable():
        pytest.skip(reason)
    nodes = Nodes(2, bad_link=True)
    with nodes as (_, far):
        assert nodes.link is not None
        with subprocess.Popen([*far.launcher, sys.executable, "-c", ECHO], stdout=subprocess.PIPE) as echo:
            try:
                assert echo.stdout is not None and echo.stdout.readline()
                with socket.create_connection((far.address(1), PORT), timeout=20) as peer:
                    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    yield far, nodes.link, peer
            finally:
                echo.kill()


def round_trips_ms(peer: socket.socket, rounds: int = ROUNDS) -> list[float]:
    took = []
    for number in range(rounds):
        sent, said = time.perf_counter(), number.to_bytes(4, "big") * 300
        peer.sendall(said)
        heard = b""
        while len(heard) < len(said):
            heard += peer.recv(4096)
        assert heard == said
        took.append((time.perf_counter() - sent) * 1000)
    return took


def test_latency_is_in_both_directions(line: tuple[Node, Link, socket.socket]) -> None:
    _, link, peer = line
    quick = statistics.median(round_trips_ms(peer))
    link.be(latency_ms=100, loss=0)
    round_trips_ms(peer, 1)  # what was on its way
    assert min(round_trips_ms(peer, 5)) >= 200 > quick


def test_what_is_lost_is_sent_again_by_tcp(line: tuple[Node, Link, socket.socket]) -> None:
    _, link, peer = line
    link.be(latency_ms=0, loss=0.1)
    assert max(round_trips_ms(peer)) > 150  # the shortest time after which TCP sends again is 200 ms


def test_a_cut_is_silent_and_over_when_the_node_joins_again(line: tuple[Node, Link, socket.socket]) -> None:
    far, _, peer = line
    round_trips_ms(peer, 1)
    far.cut_off()
    peer.sendall(b"said")
    peer.settimeout(0.5)
    with pytest.raises(TimeoutError):
        peer.recv(4)
    far.join_again()
    peer.settimeout(20)
    assert peer.recv(4) == b"said"
