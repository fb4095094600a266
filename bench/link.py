"""A node's link to the others with latency and loss in it, for kernels without netem.

    ip netns exec NODE python -m bench.link FD NAME

Between a TAP device here, FD, and one that it makes in the node, NAME, Ethernet frames pass through this process, so
that the kernels on both sides meet what they would on a long or a bad line: later acknowledgements, and TCP that sends
again. `Link` starts it and tells it how to be.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from typing import IO

from harness.local_mesh import ROOT

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
FRAME_BYTES = 2048  # an Ethernet frame of 1500 and its headers
MOST_FRAMES = 1000  # on their way in one direction; a line that is full drops more, too


def open_tap(name: str) -> int:
    """A TAP device of this name in the network namespace of this process; it is there as long as it is open."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


class Link:
    """The link between a device `outside` here and one `inside` a node. It is fast and whole until `be`."""

    def __init__(self, launcher: list[str], outside: str, inside: str) -> None:
        """`launcher` is put before a command that runs in the node."""
        tap = open_tap(outside)
        try:
            self._relay = subprocess.Popen(
                [*launcher, sys.executable, "-m", "bench.link", str(tap), inside], cwd=ROOT, pass_fds=[tap], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        finally:
            os.close(tap)  # the relay has it
        self._pipe(self._relay.stdout).readline()  # the device is there, or the relay has ended

    def be(self, latency_ms: float, loss: float) -> None:
        """Keep each frame for so long in each direction, and drop this share of them."""
        pipe = self._pipe(self._relay.stdin)
        pipe.write(f"{latency_ms} {loss}\n")
        pipe.flush()

    def close(self) -> None:
        """Take the devices away."""
        self._relay.kill()
        self._relay.communicate()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def relay(taps: tuple[int, int], settings: int) -> None:
    """Until `settings` ends, which has a line of latency in ms and loss for each change."""
    latency_s = loss = 0.0
    chance = random.Random(1)
    ways: dict[int, tuple[int, deque[tuple[float, bytes]]]] = {taps[0]: (taps[1], deque()), taps[1]: (taps[0], deque())}
    while True:
        due = min((frames[0][0] for _, frames in ways.values() if frames), default=None)
        ready, _, _ = select.select([*taps, settings], [], [], None if due is None else max(due - time.monotonic(), 0))
        if settings in ready:
            if not (line := os.read(settings, 1024)):
                return
            latency_s, loss = (float(word) for word in line.split()[-2:])
            latency_s /= 1000
        for source, (target, frames) in ways.items():
            if source in ready:
                with contextlib.suppress(OSError):  # BlockingIOError when there are no more, others while it is down
                    while frame := os.read(source, FRAME_BYTES):
                        if chance.random() >= loss and len(frames) < MOST_FRAMES:
                            frames.append((time.monotonic() + latency_s, frame))
            while frames and frames[0][0] <= time.monotonic():
                with contextlib.suppress(OSError):
                    os.write(target, frames.popleft()[1])


if __name__ == "__main__":
    inside = open_tap(sys.argv[2])
    print("open", flush=True)
    relay((int(sys.argv[1]), inside), sys.stdin.fileno())
