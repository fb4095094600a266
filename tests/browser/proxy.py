"""A TCP proxy with a bad network in it: jitter, stalls and cuts, all reproducible."""

from __future__ import annotations

import asyncio
import contextlib
import random

WAITING = 256  # chunks in one direction; a reader beyond that is held back, as by a full socket


class BadNetwork:
    """`async with` listens; what comes is forwarded to 127.0.0.1:`port`."""

    def __init__(self, port: int, *, jitter_s: float = 0.0, stall_s: float = 0.0, stall_every_s: float = 5.0,
                 seed: int = 1) -> None:
        """Each chunk is delayed by up to `jitter_s`, in order; every `stall_every_s` nothing passes for `stall_s`."""
        self.port = port
        """Where connections to come lead to."""
        self._jitter_s, self._stall_s, self._stall_every_s = jitter_s, stall_s, stall_every_s
        self._random = random.Random(seed)
        self._links: set[asyncio.Task[None]] = set()
        self._is_cut = False

    async def __aenter__(self) -> BadNetwork:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.url = f"http://localhost:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._break()

    def down(self) -> None:
        """Break every connection, and refuse new ones from now on."""
        self._is_cut = True
        self._break()

    async def cut(self, seconds: float) -> None:
        """Break every connection, and refuse new ones for so long."""
        self.down()
        await asyncio.sleep(seconds)
        self._is_cut = False

    def _break(self) -> None:
        for link in list(self._links):
            link.cancel()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            if self._is_cut:
                return
            there, back = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                await asyncio.gather(self._forward(reader, back), self._forward(there, writer))
            finally:
                back.transport.abort()
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._links.discard(task)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAITING)
        sender = asyncio.create_task(self._send(waiting, writer))
        try:
            last = 0.0
            while chunk := await reader.read(1 << 16):
                last = max(last, self._arrival(asyncio.get_running_loop().time()))
                await waiting.put((last, chunk))
            await waiting.put((last, b""))
            await sender
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sender

    async def _send(self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            at, chunk = await waiting.get()
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()

    def _arrival(self, now: float) -> float:
        at = now + self._random.uniform(0, self._jitter_s)
        into = at % self._stall_every_s
        return at + max(self._stall_s - into, 0.0) if self._stall_s else at
