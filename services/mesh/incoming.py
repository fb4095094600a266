"""The requests of a stream as its handler reads them: parsed messages, the config first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from services.mesh.errors import InvalidRequest, SlowCaller
from services.mesh.logs import Sparing

# A caller that opens a stream sends its config with it; this only has to cover a slow network.
CONFIG_WAIT_S = 10.0

Item = TypeVar("Item")
Request = TypeVar("Request")

_malformed = Sparing(logging.getLogger(__name__))


@dataclass(frozen=True)
class Sender:
    """What is known of who sent a request: nothing, if it came through a tunnel."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""


class Incoming(Generic[Request]):
    """The requests of one call, in order, and who sends them.

    Iterating raises InvalidRequest at a message that can't be parsed.
    """

    def __init__(self, messages: AsyncIterator[bytes], parse: Callable[[bytes], Request],
                 sender: Sender = Sender()) -> None:  # it is frozen
        self.sender = sender
        self._messages = messages
        self._parse = parse

    def __aiter__(self) -> Incoming[Request]:
        return self

    async def __anext__(self) -> Request:
        return self._parse(await anext(self._messages))


def parser(kind: type[Message]) -> Callable[[bytes], Any]:
    """A function from bytes to a message of this kind; it raises InvalidRequest when they are not one."""
    def parse(data: bytes) -> Message:
        try:
            return kind.FromString(data)
        except DecodeError:
            name = kind.DESCRIPTOR.full_name
            _malformed.warning("a caller sent %d bytes that are not a %s", len(data), name)
            raise InvalidRequest("BAD_MESSAGE", f"{len(data)} bytes came that are not a {name}; generate the stubs "
                                 "from this mesh's contracts", accepted=name) from None

    return parse


async def next_within(items: AsyncIterator[Item], seconds: float) -> Item:
    """The next item. Raises TimeoutError when it does not come in time, StopAsyncIteration at the end.

    Not `asyncio.wait_for`: before Python 3.12 that swallows a cancellation which arrives together with the item, and a
    call that was hung up would go on without its caller (https://github.com/python/cpython/issues/86296).
    """
    coming = asyncio.ensure_future(items.__anext__())
    try:
        await asyncio.wait((coming,), timeout=seconds)
        if not coming.done():
            raise TimeoutError
        return coming.result()
    finally:
        coming.cancel()


async def read_config_message(requests: AsyncIterator[Any]) -> Any:
    """The first message's config.

    Raises:
        InvalidRequest: something else came first, or nothing.
        SlowCaller: nothing came for CONFIG_WAIT_S.
    """
    try:
        first = await next_within(requests, CONFIG_WAIT_S)
    except StopAsyncIteration:
        raise InvalidRequest("CONFIG_MISSING", "the stream ended before its config; send the config first") from None
    except (asyncio.TimeoutError, TimeoutError):
        raise SlowCaller(f"no config within {CONFIG_WAIT_S:.0f} s; send it with the first message") from None
    if first.WhichOneof("request") != "config":
        raise InvalidRequest("CONFIG_MISSING", "the first message must be the config", field="config")
    return first.config


async def read_payload(requests: AsyncIterator[Any], field: str) -> Any:
    """The next message's `field`, as what was announced in the config. Raises InvalidRequest, SlowCaller."""
    try:
        return _payload(await next_within(requests, CONFIG_WAIT_S), field)
    except StopAsyncIteration:
        raise InvalidRequest("EMPTY_REQUEST", f"the stream ended before the {field} that its config announced",
                             field=field) from None
    except (asyncio.TimeoutError, TimeoutError):
        raise SlowCaller(f"no {field} within {CONFIG_WAIT_S:.0f} s; send it right after the config") from None


async def read_payloads(requests: AsyncIterator[Any], field: str) -> AsyncIterator[Any]:
    """The messages after the config, each of which must have `field` set."""
    async for request in requests:
        yield _payload(request, field)


def _payload(request: Any, field: str) -> Any:
    kind = request.WhichOneof("request")
    if kind == "config":
        raise InvalidRequest("CONFIG_TWICE", "the config may be sent only once", field="config")
    if kind != field:
        raise InvalidRequest("EMPTY_REQUEST", f"a message after the config must have {field} set", field=field)
    return getattr(request, field)
