"""The items that one end of a tunnel sends, collected into messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from moshimesh.tunnel.v1 import tunnel_pb2

# How long an item that is not urgent may wait for one that is.
LAZY_S = 0.1
# One item's message: some frames of a session's past are a quarter of a MB. Well below the limit of a gRPC message
# (1 MiB), which ends the stream, and with it all of its calls; this one only ends its own.
ITEM_BYTES = 768 << 10
# Items that share a message, by size and number. The other end reads all items of a message without a pause, about
# 50 us each; a message costs little in comparison.
MESSAGE_BYTES = 256 << 10
ITEMS_PER_MESSAGE = 512
_ITEM_OVERHEAD_BYTES = 64  # of an item that waits, besides its message

Item = TypeVar("Item", tunnel_pb2.RequestItem, tunnel_pb2.ResponseItem)


class Outbox(Generic[Item]):
    """Items that wait to be sent together.

    They wait as long as the other end does not read. When more than `most_bytes` wait, it has not for long: the outbox
    is `full` for good, takes nothing more, and the tunnel must end.
    """

    def __init__(self, most_bytes: int, on_full: Callable[[], None] = lambda: None) -> None:
        self.full = False
        self._most_bytes, self._on_full = most_bytes, on_full
        self._items: list[Item] = []
        self._bytes = 0
        self._filled = asyncio.Event()
        self._waking: asyncio.TimerHandle | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._items

    def put(self, item: Item) -> None:
        """Send an item with the next message."""
        self._add(item)
        self._filled.set()

    def put_lazily(self, item: Item) -> None:
        """Send an item with the next message, but not a message for it alone within LAZY_S."""
        self._add(item)
        if self._waking is None:
            self._waking = asyncio.get_running_loop().call_later(LAZY_S, self.wake)

    def wake(self) -> None:
        """Let `take` return although there may be nothing to send."""
        self._filled.set()

    async def take(self) -> Iterable[list[Item]]:
        """What has come together, in one or more messages of a bounded size."""
        await self._filled.wait()
        await asyncio.sleep(0)  # tasks that were woken by the same event can add their items, too
        self._filled.clear()
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        items, self._items, self._bytes = self._items, [], 0
        messages: list[list[Item]] = [[]]
        size = 0
        for item in items:
            size += len(item.message)
            if messages[-1] and (size > MESSAGE_BYTES or len(messages[-1]) >= ITEMS_PER_MESSAGE):
                messages.append([])
                size = len(item.message)
            messages[-1].append(item)
        return messages

    def _add(self, item: Item) -> None:
        if self.full:
            return
        self._items.append(item)
        self._bytes += len(item.message) + _ITEM_OVERHEAD_BYTES
        if self._bytes > self._most_bytes:
            self.full = True
            self._items.clear()
            self._on_full()
