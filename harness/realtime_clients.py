"""The clients of `/v1/realtime` that others have written, each as a process in an environment of its own.

What they need is in requirements/doors.txt; a client that is not installed is not tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "harness" / "doors"
ENVIRONMENT = "MOSHIMESH_DOORS_VENV"  # where it is, if it is not here
CLIENTS = {"openai_realtime": "openai", "openai_agents": "agents", "livekit_agents": "livekit.plugins.openai",
           "pipecat_service": "pipecat"}
"""The scripts, and the module that each can't do without."""
STEPS = ["answered", "yielded", "cancelled", "answered again"]
LONGEST_S = 240.0  # a conversation takes 40 s
LONGEST_LINE = 1 << 20  # of what it prints: LiveKit's tracebacks are long
END_S = 60.0  # for a client to hang up and say what it has heard: LiveKit loads its models when it ends, too


class NotInstalled(Exception):
    """A client that can't be tried here."""


def doors_python() -> Path:
    """The Python of the clients' environment. Raises NotInstalled."""
    python = Path(os.environ.get(ENVIRONMENT, ROOT / ".venv-doors")) / "bin" / "python"
    if not python.exists():
        raise NotInstalled(f"no environment for the clients; make doors makes it (looked for {python.name} in "
                           f"{python.parent.parent.name})")
    return python


async def try_client(name: str, url: str, key: str, python: Path | None = None) -> tuple[bool | str, dict[str, Any]]:
    """Let a client hold a conversation with a mesh that runs the talking checkpoint: ask and be answered, talk over an
    answer, cancel one, ask again. `python` is of the client's environment, if that is not the one of all of them.

    Returns True, or why not; and what the client saw.
    """
    samples = ROOT / "samples"
    try:
        async with running(name, url, key, "--question", str(samples / "question-1.wav"), "--barge-in",
                           str(samples / "interrupt.wav"), python=python) as client:
            facts = await client.facts(LONGEST_S)
    except NotInstalled as error:
        return f"not tried: {error}", {}
    except ClientFailed as error:
        return str(error), {}
    if facts["errors"]:
        return f"errors: {facts['errors']}", facts
    if facts["steps"] != STEPS:
        return f"got no further than {facts['steps']}", facts
    return True, facts


class ClientFailed(Exception):
    """A client ended without saying what it has seen."""


class Running:
    """A client that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.seen: dict[str, Any] = {}
        """What it has seen until now."""
        self._reading = [asyncio.create_task(self._read()), asyncio.create_task(self._read_errors())]
        self._last_words = ""

    async def facts(self, within_s: float = END_S) -> dict[str, Any]:
        """Let it end, and say what it has seen. Raises ClientFailed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(asyncio.gather(self._process.wait(), *self._reading), within_s)
        except (asyncio.TimeoutError, TimeoutError):
            raise ClientFailed(f"did not end within {within_s:.0f} s") from None
        if not self.seen:
            raise ClientFailed(self._last_words)
        return self.seen

    async def close(self) -> None:
        """End it at once."""
        if self._process.returncode is None:
            self._process.kill()
        await asyncio.gather(self._process.wait(), *self._reading, return_exceptions=True)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.startswith(b'{"steps"'):
                self.seen = json.loads(line)

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._last_words = line.decode(errors="replace").strip() or self._last_words


@contextlib.asynccontextmanager
async def running(name: str, url: str, key: str, *options: str, python: Path | None = None
                  ) -> AsyncIterator[Running]:
    """A client that has called; without options it listens, and says nothing. Raises NotInstalled."""
    python = python or doors_python()
    found = await asyncio.create_subprocess_exec(
        python, "-c", f"import importlib.util, sys; sys.exit(importlib.util.find_spec({CLIENTS[name]!r}) is None)",
        stderr=asyncio.subprocess.DEVNULL)
    if await found.wait():
        raise NotInstalled(f"{CLIENTS[name]} is not installed")
    process = await asyncio.create_subprocess_exec(
        python, str(SCRIPTS / f"{name}.py"), "--url", url, "--key", key, *options, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=LONGEST_LINE)
    client = Running(process)
    try:
        yield client
    finally:
        await client.close()
