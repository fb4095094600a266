"""Anything that JSON can hold, in any order with what the mesh tells: an answer or an error, never an exception."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from services.gateway.calls.events import EventKind
from services.gateway.edges.web.realtime.dialects import Beta, Dialect, Ga
from services.gateway.edges.web.realtime.session import Session
from tests.gateway.edges.web.realtime.told import Talk

TYPES = ["session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear",
         "conversation.item.create", "conversation.item.retrieve", "conversation.item.delete",
         "conversation.item.truncate", "response.create", "response.cancel", "output_audio_buffer.clear", "sing"]
NAMES = ["session", "audio", "input", "output", "format", "type", "rate", "item", "id", "content", "role", "item_id",
         "previous_item_id", "audio_end_ms", "content_index", "response", "metadata", "response_id", "event_id",
         "input_audio_format", "transcript", "image_url", "status", "object"]
VALUES = [None, True, False, 0, -1, 1e308, float("nan"), float("inf"), 2**70, "", "a", "root", "AAAA", "audio/pcmu",
          "audio/pcm", "g711_alaw", "realtime", "message", "user", "\ud800", "\0", "a" * 600, [], {}, [[]], [{}]]


def value(dice: random.Random, depth: int = 0) -> Any:
    kind = dice.random()
    if depth < 4 and kind < 0.4:
        return {dice.choice(NAMES): value(dice, depth + 1) for _ in range(dice.randrange(5))}
    if depth < 4 and kind < 0.5:
        return [value(dice, depth + 1) for _ in range(dice.randrange(4))]
    return dice.choice(VALUES)


@pytest.mark.parametrize("dialect", [Ga(), Beta()], ids=["ga", "beta"])
@pytest.mark.parametrize("seed", range(20))
def test_nothing_that_a_client_sends_is_our_fault(dialect: Dialect, seed: int) -> None:
    dice, talk = random.Random(seed), Talk(dialect)
    session: Session = talk.session
    for _ in range(200):
        fields = {dice.choice(NAMES[:-2]): value(dice) for _ in range(dice.randrange(5))}
        if dice.random() < 0.3:
            content = [value(dice), {"type": value(dice)}]
            fields["item"] = {"type": dice.choice(["message", "other"]), "content": content}
        session.asked(json.dumps({"type": dice.choice(TYPES), **fields}))
        if dice.random() < 0.3:
            talk.event(dice.choice(list(EventKind)))
        talk.frames(1, "a" if dice.random() < 0.2 else "")
        talk.inbox._feed.next()
    for message in talk.sent:
        json.dumps(message, allow_nan=False)
    assert session.close_code is None
