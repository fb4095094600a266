"""What it costs live calls when certificates are replaced: those of the gateway's ports, and those between the gateway
and its codec and lm.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import moshimesh

from harness.certificates import Authority, serial_of
from harness.null_mesh import NullMesh
from harness.recordings import FRAME_BYTES

FRAME_S = 0.08
FRAMES_BETWEEN = 12  # each call has so many answers, about a second of them, between one step and the next
PATIENCE_S = 60.0
MOVED = "is called with the new certificate alone"  # the gateway's log, once for the codec and once for the lm


@dataclass(frozen=True)
class Rotation:
    """What came of it. A call that was cut off and resumed counts as lost."""

    calls: int
    calls_lost: int
    frames: int
    """That all callers have sent."""
    frames_lost: int
    """Without an answer: of those that a call has sent, and of the silence that makes up for its delay line."""


@dataclass
class _Call:
    """One live caller."""

    sent: int = 0
    answered: set[int] = field(default_factory=set)
    error: str = ""

    async def hold(self, mesh: moshimesh.Mesh, stop: asyncio.Event) -> None:
        try:
            async for event in mesh.converse(self._speak(stop), resume_s=0.0):
                if isinstance(event, moshimesh.Speech):
                    self.answered.add(event.sequence)
        except moshimesh.MeshError as error:
            self.error = str(error)

    async def _speak(self, stop: asyncio.Event) -> AsyncIterator[bytes]:
        due = time.monotonic()
        while not stop.is_set():
            self.sent += 1
            yield bytes(FRAME_BYTES)
            due += FRAME_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def measure_rotation(calls: int = 8) -> Rotation:
    """Replace both certificates under so many live calls, over engines that compute nothing.

    Raises RuntimeError when a rotation did not happen: then nothing was measured.
    """
    with tempfile.TemporaryDirectory(prefix="moshi-mesh-rotation-") as name:
        folder, ca = Path(name), Authority()
        roots = folder / "ca.pem"
        roots.write_bytes(ca.pem)
        edge, edge_key = ca.issue().write(folder, "edge")
        peer, peer_key = ca.issue().write(folder, "peer")
        ours = ca.issue()
        credentials = grpc.ssl_channel_credentials(ca.pem, ours.key, ours.pem)
        lines: list[str] = []
        async with NullMesh(
                slots=calls + 1, on_line=lambda service, line: lines.append(line),
                credentials=dict.fromkeys(("gateway", "codec", "lm"), credentials),
                environment={"MOSHIMESH_TLS_CERT": str(edge), "MOSHIMESH_TLS_KEY": str(edge_key),
                             "MOSHIMESH_PEER_CA": str(roots), "MOSHIMESH_PEER_CERT": str(peer),
                             "MOSHIMESH_PEER_KEY": str(peer_key)}) as mesh, \
                moshimesh.connect(mesh.target, credentials=credentials) as client:
            held, stop = [_Call() for _ in range(calls)], asyncio.Event()
            talking = [asyncio.create_task(call.hold(client, stop)) for call in held]

            async def go_on() -> None:
                """Until every call that lives has more answers."""
                goal = {id(call): len(call.answered) + FRAMES_BETWEEN for call in held}
                await _until("answers", lambda: all(call.error or len(call.answered) >= goal[id(call)]
                                                    for call in held))

            await go_on()
            new = ca.issue(kind="rsa")
            new.write(folder, "edge")
            for port in (mesh.gateway_port, mesh.http_port):
                await _until("a new certificate at the edge", lambda port=port: _served(port, serial_of(new.pem)))
            await go_on()
            ca.issue().write(folder, "peer")
            await _until("new connections to codec and lm", lambda: sum(MOVED in line for line in lines) == 2)
            await go_on()
            stop.set()
            await asyncio.wait_for(asyncio.gather(*talking), PATIENCE_S)
    return Rotation(calls, sum(bool(call.error) for call in held), sum(call.sent for call in held),
                    sum(call.sent - len(call.answered) for call in held))


async def _until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await asyncio.to_thread(condition):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {what} within {PATIENCE_S:.0f} s")
        await asyncio.sleep(0.1)


def _served(port: int, serial: int) -> bool:
    """Whether this certificate is served there."""
    return serial_of(ssl.get_server_certificate(("localhost", port), timeout=PATIENCE_S).encode()) == serial
