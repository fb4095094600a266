"""How a call begins: with a voice and a text, as far as the mesh has them, that clients of OpenAI's ask for with the
first messages that they send.
"""

from __future__ import annotations

import asyncio
import contextlib

from services.gateway.calls.callers import New
from services.gateway.edges.web.realtime.settings import Settings

# Clients send their settings at once or when they have session.created, a round trip away; LiveKit and openai-agents in
# two or three messages that follow each other. A call whose client sends none is open so much later.
FIRST_UPDATE_S = 1.0
NEXT_UPDATE_S = 0.25


class Beginning:
    """Knows when a client has said how its call begins."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._updated = self._over = False
        self._heard = asyncio.Event()

    def updated(self) -> None:
        """The client has sent settings."""
        self._updated = True
        self._heard.set()

    def spoke(self) -> None:
        """The client has sent sound. One that has not sent settings by then has none."""
        if not self._updated:
            self._over = True
            self._heard.set()

    async def settled(self) -> New:
        """What the call begins with. Later settings don't change that."""
        loop = asyncio.get_running_loop()
        until = last = loop.time() + FIRST_UPDATE_S
        while not self._over and (left_s := until - loop.time()) > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._heard.wait(), left_s)
                self._heard.clear()
                until = min(loop.time() + NEXT_UPDATE_S, last)
        self._settings.begun = True
        return New(voice=self._settings.voice, text_prompt=self._settings.instructions)
