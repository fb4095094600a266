"""The reason why a conversation ends, as a message of its own before the status.

grpc.aio hides the status from a caller that is writing at the moment when the call ends
(https://github.com/grpc/grpc/issues/36066): it reports INTERNAL instead. A backend that streams audio is always
writing. So the reason comes as the last response, too, while the caller may still write, and the call ends when the
caller has half-closed, or a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator

from moshimesh.gateway.v1 import conversation_pb2

from services.mesh.errors import MeshError
from services.mesh.serving import internal_error

Request = conversation_pb2.ConverseRequest
Response = conversation_pb2.ConverseResponse

# How long the caller may take to half-close after the reason. It covers a round trip and a caller's event loop that is
# busy with many calls: with 0.5 s, 39 of 1000 lost the reason (80 calls at once beside two busy processes). A caller
# that ignores the reason only gets its status so much later, and holds no slot meanwhile. services/mesh/process.py
# gives a drain more than that.
FAREWELL_S = 2.0
# Requests that are let go of during the farewell: what was on its way when the reason went out, and more than gRPC's
# window holds in pieces of 10 ms. A caller that goes on and on does not look for a reason, and costs others their time.
FAREWELL_REQUESTS = 500
# Requests that are read ahead. One is enough to know whether the caller has half-closed; more would only be a queue in
# which live audio grows old.
AHEAD = 1


class Requests:
    """The caller's requests, which can be read on after a reader was cancelled.

    Cancelling a read of gRPC's own iterator ends that iterator, but the conversation's reader is cancelled when the
    conversation ends, and the farewell has to see the half-close after that. Use as a context manager.
    """

    def __init__(self, requests: AsyncIterator[Request]) -> None:
        self._requests = requests
        self._ahead: deque[Request] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._failure: MeshError | None = None
        self._leaving = asyncio.Event()

    async def __aenter__(self) -> Requests:
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Request:
        while not self._ahead:
            if self._failure is not None:
                raise self._failure
            if self._reading.done():
                self._reading.result()
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        self._room.set()
        return self._ahead.popleft()

    async def half_closed(self, within_s: float) -> None:
        """Let go of what comes until the caller has half-closed or hung up, for `within_s` at the most."""
        self._leaving.set()
        self._room.set()
        await asyncio.wait((self._reading,), timeout=within_s)

    async def _read(self) -> None:
        let_go = 0
        try:
            while let_go < FAREWELL_REQUESTS:
                try:
                    request = await anext(self._requests)
                except MeshError as error:  # a message that can't be parsed; nobody wants what comes after it
                    self._failure = self._failure or error
                    self._changed.set()
                    await self._leaving.wait()
                    let_go += 1
                    continue
                while len(self._ahead) >= AHEAD and not self._leaving.is_set():
                    self._room.clear()
                    await self._room.wait()
                if self._leaving.is_set():
                    let_go += 1
                else:
                    self._ahead.append(request)
                    self._changed.set()
            await asyncio.Event().wait()  # as if nothing more came, until the call ends
        except StopAsyncIteration:
            pass
        finally:
            self._changed.set()


async def with_farewell(responses: AsyncGenerator[Response, None], requests: Requests, where: str,
                        farewell_s: float = FAREWELL_S) -> AsyncGenerator[Response, None]:
    """The responses; if they end with an error, also the reason, and a moment to half-close before the error goes on.

    An error that is not ours is a bug in `where`, and ends the call as such.
    """
    async with contextlib.aclosing(responses):
        try:
            async for response in responses:
                yield response
            return
        except MeshError as error:
            failure = error
        except Exception as error:
            failure = internal_error(where, error)
    yield Response(ended=ended(failure))
    await requests.half_closed(farewell_s)
    raise failure


def ended(error: MeshError) -> conversation_pb2.CallEnded:
    """An error as the conversation's last message."""
    message = conversation_pb2.CallEnded(code=error.code.value[0], reason=error.reason, message=error.message,
                                         metadata=error.metadata)
    if error.retry_after_s is not None:
        message.retry_after_ms = round(error.retry_after_s * 1000)
    return message
