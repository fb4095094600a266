"""The page /metrics for Prometheus: a small HTTP server on a thread of its own, for a few clients.

prometheus_client's own server takes a thread and a descriptor for every connection and waits for its request without
limit, so that any client that can reach the port could use up both. Here the connections are few, and each is closed
soon whatever comes over it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

log = logging.getLogger(__name__)

CONNECTIONS = 16  # at once; a Prometheus opens one, and two or three may ask at the same moment
REQUEST_BYTES = 8192  # Prometheus sends 400
REQUEST_S = 5.0  # from the connection to the end of its request's head
ANSWER_S = 10.0  # to take the answer, about 60 kB; as long as Prometheus waits for it by default


class MetricsPage:
    """Serves a registry's metrics at /metrics until `close`."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Raises OSError when the address can't be listened on. A port of 0 takes a free one."""
        self._registry = registry
        self._connections = 0
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="metrics-page", daemon=True)
        self._thread.start()
        # Services make a page from within their own event loop, where this one can't run.
        listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, host, port, limit=REQUEST_BYTES, backlog=CONNECTIONS), self._loop)
        try:
            self._server = listening.result()
        except OSError:
            self.close()
            raise
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._leave())
        self._loop.close()

    async def _leave(self) -> None:
        if self._server is not None:
            self._server.close()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for one request."""
        self._connections += 1
        try:
            if self._connections <= CONNECTIONS:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_S)
                writer.write(self._answer(head.decode("latin-1")))
                await asyncio.wait_for(writer.drain(), ANSWER_S)
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), ANSWER_S)
        except (asyncio.TimeoutError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # too slow, too long, or gone: no answer would be read
        finally:
            self._connections -= 1
            with contextlib.suppress(Exception):
                writer.transport.abort()  # does nothing to one that is closed

    def _answer(self, head: str) -> bytes:
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            return _response("405 Method Not Allowed", b"only GET is answered here\n", "Allow: GET\r\n")
        if path not in ("/", "/metrics"):
            return _response("404 Not Found", b"metrics are at /metrics\n")
        accept = ",".join(value.strip() for name, _, value in (line.partition(":") for line in lines)
                          if name.strip().lower() == "accept")
        encode: Callable[[CollectorRegistry], bytes]
        encode, content_type = choose_encoder(accept)
        try:
            return _response("200 OK", encode(self._registry), f"Content-Type: {content_type}\r\n")
        except Exception:
            log.exception("/metrics failed")
            return _response("500 Internal Server Error", b"the service's log says what failed\n")


def _response(status: str, body: bytes, headers: str = "Content-Type: text/plain; charset=utf-8\r\n") -> bytes:
    return (f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode("latin-1")
            + body)
