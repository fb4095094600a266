"""The conversation's list of items, as clients see it. The model never reads it: it hears, and has its own memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

MOST_BYTES = 1 << 20  # of all items that a client may ask for again; the oldest are forgotten
MOST_ITEM_BYTES = 1 << 16  # of one, without its sound and its pictures, which are not kept
ROOT = "root"  # before the first item
# Sound and pictures go through once and are not kept: a message with them could be larger than what clients take.
_HEAVY = ("audio", "image_url")


@dataclass
class Item:
    """One item of the list."""

    id: str
    body: dict[str, Any]
    """What a client sees of it, but for what is below."""
    role: str = ""
    status: str = "completed"
    part: str = ""
    """The type of its only content part, for those that have a transcript."""
    words: list[tuple[int, str]] = field(default_factory=list)
    """What the model says in it: since when in its sound, in milliseconds, and a piece of text."""
    audio_ms: int = 0
    """How much sound it has."""
    heard_ms: int | None = None
    """How much of the sound the user has heard, if the client has said so."""
    first_sequence: int = 0
    """The frame at which its sound begins."""

    @property
    def transcript(self) -> str:
        """What was said, as far as it was heard."""
        return "".join(text for since_ms, text in self.words if self.heard_ms is None or since_ms < self.heard_ms)

    def shown(self, with_content: bool = True) -> dict[str, Any]:
        """The item as it goes to the client."""
        if not self.part:
            return self.body
        heard = None if self.role == "user" else self.transcript
        content = [{"type": self.part, "transcript": heard}] if with_content else []
        return {"id": self.id, "object": "realtime.item", "type": "message", "status": self.status, "role": self.role,
                "content": content}


def spoken_by_user(item_id: str) -> Item:
    """What the user said. There is no transcript: Moshi hears speech as it is."""
    return Item(item_id, {}, "user", part="input_audio")


def spoken_by_model(item_id: str, first_sequence: int) -> Item:
    """What the model is about to say."""
    return Item(item_id, {}, "assistant", "in_progress", "output_audio", first_sequence=first_sequence)


def written_by_client(item_id: str, body: dict[str, Any]) -> Item:
    """An item that the client has made. Raises ValueError when it is too large to be listed."""
    shown = {**body, "id": item_id, "object": "realtime.item"}
    if shown.get("type") == "message":
        shown.setdefault("status", "completed")
        content = shown.get("content")
        shown["content"] = [
            {key: value for key, value in part.items() if key not in _HEAVY}
            for part in (content if isinstance(content, list) else []) if isinstance(part, dict)]
    item = Item(item_id, shown)
    if _size(item) > MOST_ITEM_BYTES:
        raise ValueError(f"an item may have {MOST_ITEM_BYTES} bytes besides sound and pictures")
    return item


class Items:
    """The items, in order."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._order: list[str] = []
        self._bytes = 0

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Put an item after another one, by default and when that one is unknown after the last. One with the same id
        goes. Returns the id of the item before it, None when it is the first.
        """
        self.remove(item.id)
        if after == ROOT:
            place = 0
        elif after in self._items:
            place = self._order.index(after) + 1
        else:
            place = len(self._order)
        self._order.insert(place, item.id)
        self._items[item.id] = item
        self._bytes += _size(item)
        while self._bytes > MOST_BYTES:
            self.remove(next(one for one in self._order if one != item.id))
        place = self._order.index(item.id)
        return self._order[place - 1] if place else None

    def get(self, item_id: str) -> Item | None:
        """The item, if it is in the list."""
        return self._items.get(item_id)

    def before(self, item_id: str) -> str | None:
        """The id of the item before one; None when it is the first, or not in the list (any more)."""
        if item_id not in self._items:
            return None
        place = self._order.index(item_id)
        return self._order[place - 1] if place else None

    def remove(self, item_id: str) -> None:
        """Take an item out, if it is there."""
        item = self._items.pop(item_id, None)
        if item is not None:
            self._order.remove(item_id)
            self._bytes -= _size(item)


# An item counts as at least so much, so that the list has at most 1024. What is spoken brings 1 kB of text a minute.
_LEAST_BYTES = 1 << 10


def _size(item: Item) -> int:
    return max(_LEAST_BYTES, len(json.dumps(item.body)))
