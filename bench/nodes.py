"""Nodes of a cluster as network namespaces of this machine, so that one can be cut off while its processes live on.

Needs root and `ip`. Each node is at a bridge, with an address for each of its pods.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from bench.link import Link

BRIDGE = "moshi-mesh0"
NET = "10.213"  # of addresses that are nobody's else; a machine has one such set of nodes at a time
MOST_PODS = 6


def usable() -> str:
    """Why there can be no nodes here; empty when there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and the command ip"
    done = subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"no bridge can be made here: {done.stderr.strip()}"
    _ip("link", "del", BRIDGE)
    return ""


@dataclass(frozen=True)
class Node:
    """One of the nodes, from 1."""

    number: int

    @property
    def name(self) -> str:
        """Of its namespace."""
        return f"moshi-mesh-node{self.number}"

    @property
    def launcher(self) -> list[str]:
        """What is put before a command that runs there."""
        return ["ip", "netns", "exec", self.name]

    def address(self, pod: int) -> str:
        """Of one of its pods, from 1."""
        return f"{NET}.{self.number}.{pod}"

    def cut_off(self) -> None:
        """Nothing comes in or goes out; connections are not closed, they only go silent."""
        _ip("link", "set", f"mm-node{self.number}", "down")

    def join_again(self) -> None:
        """The network is back."""
        _ip("link", "set", f"mm-node{self.number}", "up")


class Nodes:
    """`with Nodes(2) as nodes`: they are there as long as the block lasts."""

    def __init__(self, count: int, *, bad_link: bool = False) -> None:
        """With `bad_link` the last one's `link` can be slow and lossy."""
        self._nodes = [Node(number) for number in range(1, count + 1)]
        self._bad_link = bad_link
        self.link: Link | None = None

    def __enter__(self) -> list[Node]:
        self._remove()  # of a run that was killed
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{NET}.0.1/16", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for node in self._nodes:
            outside, inside = f"mm-node{node.number}", f"mm-in{node.number}"
            _ip("netns", "add", node.name)
            if self._bad_link and node is self._nodes[-1]:
                self.link = Link(node.launcher, outside, inside)
            else:
                _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
                _ip("link", "set", inside, "netns", node.name)
            _ip("link", "set", outside, "master", BRIDGE, "up")
            within = ("-n", node.name)
            for pod in range(1, MOST_PODS + 1):
                _ip(*within, "addr", "add", f"{node.address(pod)}/16", "dev", inside)
            _ip(*within, "link", "set", "lo", "up")
            _ip(*within, "link", "set", inside, "up")
        return self._nodes

    def __exit__(self, *_: object) -> None:
        if self.link is not None:
            self.link.close()
        self._remove()

    def _remove(self) -> None:
        for node in self._nodes:
            subprocess.run(["ip", "netns", "del", node.name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
