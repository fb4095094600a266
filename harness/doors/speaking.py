"""What all clients of `make doors` share: somebody who speaks a recording when asked to, and is silent otherwise.

Needs nothing but Python, since each client runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import wave
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

RATE_HZ = 24_000
PIECE_MS = 20
PIECE_BYTES = RATE_HZ * PIECE_MS // 1000 * 2
PATIENCE_S = 40.0  # for an answer: a busy machine is slower than speech


def arguments() -> argparse.Namespace:
    """What the harness tells a client: where the mesh is, and what to say to it. A client that has nothing to say is
    silent until its input ends.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="http://host:port")
    parser.add_argument("--key", required=True)
    parser.add_argument("--question", type=Path, help="WAV file, 24 kHz, 16 bit, mono: one sentence")
    parser.add_argument("--barge-in", type=Path, help="another one, which talks over its own answer")
    return parser.parse_args()


def recording(path: Path) -> bytes:
    """The samples of a WAV file."""
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (RATE_HZ, 2, 1), path
        return file.readframes(file.getnframes())


class Microphone:
    """Gives 20 ms of sound every 20 ms: what is to be said, or silence."""

    def __init__(self) -> None:
        self._to_say = b""

    def say(self, path: Path) -> None:
        """Begin to speak a recording."""
        self._to_say = recording(path)

    async def stream(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send what the microphone hears, for ever."""
        due = time.monotonic()
        while True:
            piece, self._to_say = self._to_say[:PIECE_BYTES], self._to_say[PIECE_BYTES:]
            await send(piece.ljust(PIECE_BYTES, b"\0"))
            due += PIECE_MS / 1000
            await asyncio.sleep(max(due - time.monotonic(), 0))


class Conversation:
    """What a client has heard, in its own terms. A subclass for each."""

    heard_bytes = 0
    """Of sound that was given to be played."""
    interruptions = 0
    """Of the playback."""
    speaking = False
    """Whether the model speaks: half a second of an answer has come, and it is not over."""
    answers = 0
    """That were said to their end."""
    barged_in = False
    """Whether an answer was cut because the user talked over it."""
    cancelled = 0
    """Answers that were cut because the client wanted it."""

    @property
    def facts(self) -> dict[str, Any]:
        """For the report; `errors` must be empty."""
        return {"errors": []}

    async def hold(self, options: argparse.Namespace, microphone: Microphone, cancel: Callable[[], Awaitable[Any]]
                   ) -> None:
        """Ask and be answered; talk over an answer; cancel an answer; ask again. Then say what was heard, in a line."""
        steps: list[str] = []
        try:
            if options.question is None:
                await self._watch()
                return
            microphone.say(options.question)
            await until(lambda: self.answers, "an answer")
            steps.append("answered")
            microphone.say(options.barge_in)
            await until(lambda: self.barged_in, "the model to yield")
            steps.append("yielded")
            await until(lambda: not self.speaking, "the end of an answer")
            microphone.say(options.question)
            await until(lambda: self.speaking, "an answer to cancel")
            before = self.cancelled
            await cancel()
            await until(lambda: self.cancelled > before, "the cancel")
            steps.append("cancelled")
            answers = self.answers
            microphone.say(options.question)
            await until(lambda: self.answers > answers, "an answer after the cancel")
            steps.append("answered again")
        finally:
            self._report(steps)

    async def _watch(self) -> None:
        """Say again and again what has been heard, until the input ends."""
        ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        while not ending.done():
            self._report([])
            await asyncio.wait((ending,), timeout=0.1)

    def _report(self, steps: list[str]) -> None:
        facts = self.facts
        errors = [error[:300] for error in facts["errors"][:10]]
        sys.stdout.write("\n" + json.dumps({"steps": steps, "heard_bytes": self.heard_bytes,
                                            "interruptions": self.interruptions, **facts, "errors": errors}) + "\n")
        sys.stdout.flush()


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until the condition holds. Raises TookTooLong."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TookTooLong(f"waited {PATIENCE_S:.0f} s for {what}")
        await asyncio.sleep(0.02)


class TookTooLong(Exception):
    """Something did not come."""


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a client. It fails with one line when something did not come."""
    try:
        asyncio.run(main())
    except TookTooLong as error:
        sys.exit(str(error))
