"""The processes of a mesh: how they start, say what is wrong, and stop. Their real services are in tests/e2e."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence

import pytest

from harness import local_mesh
from harness.local_mesh import LocalMesh, MeshDown, Process, check_free, free_port
from tests.until import until

WAITS = "import time; print('ready', flush=True); time.sleep(60)"
IGNORES = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"


class Scripts(LocalMesh):
    """A codec, an lm and a gateway that are scripts, and no Redis."""

    def __init__(self, script: str, **fields: object) -> None:
        super().__init__(redis_url="redis://nobody-asks", **fields)  # type: ignore[arg-type]
        self._script = script

    async def start_replica(self, name: str) -> None:
        await self.start_process(name, [sys.executable, "-c", self._script])


async def started(script: str, lines: list[tuple[str, str]]) -> Process:
    process = Process("one", [sys.executable, "-c", script], {}, lambda name, line: lines.append((name, line)))
    await process.start()
    await until(lambda: lines)
    return process


async def test_a_process_hands_on_its_lines_and_stops() -> None:
    lines: list[tuple[str, str]] = []
    process = await started(WAITS, lines)
    assert process.running and lines == [("one", "ready")] and process.last_line == "ready"
    await process.stop()
    assert not process.running
    process.send(signal.SIGTERM)  # nobody is there any more


async def test_a_process_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_mesh, "STOP_S", 0.2)
    process = await started(IGNORES, [])
    await process.stop()
    assert process.child is not None and process.child.returncode == -signal.SIGKILL


async def test_a_mesh_whose_process_ends_says_its_last_words() -> None:
    mesh = Scripts("print('a first word'); raise SystemExit('no checkpoint at nowhere')")
    with pytest.raises(MeshDown, match=r"(codec|lm|gateway) ended: no checkpoint at nowhere"):
        async with mesh:
            pass
    assert not any(process.running for process in mesh.processes.values())


async def test_a_mesh_that_is_never_ready_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_mesh, "START_S", 0.5)
    mesh = Scripts(WAITS)
    with pytest.raises(MeshDown, match="codec was not ready after"):
        async with mesh:
            pass
    assert len(mesh.processes) == 3
    assert not any(process.running for process in mesh.processes.values())


async def test_the_first_process_that_ends_is_named() -> None:
    mesh = LocalMesh(redis_url="redis://nobody-asks")
    for name, seconds in (("codec", 60), ("lm", 0)):
        await mesh.start_process(name, [sys.executable, "-c", f"import time; time.sleep({seconds})"])
    assert (await mesh.wait_ended()).name == "lm"
    await mesh.__aexit__()


async def test_a_restart_needs_a_process_that_drains() -> None:
    mesh = Scripts(WAITS)  # a script that SIGTERM ends did not drain
    await mesh.start_replica("codec")
    with pytest.raises(MeshDown, match="codec did not drain"):
        await mesh.restart("codec")
    await mesh.__aexit__()


@pytest.mark.parametrize(("replicas", "names"), [
    (1, ["codec", "lm", "gateway"]), (2, ["codec", "codec-2", "lm", "lm-2", "gateway", "gateway-2"])])
def test_every_replica_has_a_port_of_its_own(replicas: int, names: Sequence[str]) -> None:
    mesh = LocalMesh(replicas=replicas, metrics=True)
    assert list(mesh.ports) == list(mesh.metrics_ports) == names
    assert len({*mesh.ports.values(), *mesh.metrics_ports.values()}) == 2 * len(names)
    assert mesh.addresses("lm") == ",".join(f"localhost:{mesh.ports[name]}" for name in names if "lm" in name)
    assert LocalMesh().metrics_flags("lm") == []
    assert mesh.metrics_flags("lm") == ["--metrics-port", str(mesh.metrics_ports["lm"])]


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MeshDown, match=f"port {port} is taken"):
            check_free(port)
    check_free(free_port())
