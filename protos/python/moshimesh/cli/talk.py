"""`moshimesh talk`: a conversation by microphone and loudspeaker."""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from moshimesh.cli.arguments import add_sampling, sampling_of
from moshimesh.cli.output import CommandFailed, Output
from moshimesh.client import connect
from moshimesh.director import Director
from moshimesh.events import ConversationEvent, Ready, Speech

RATE = 24_000
PIECE = RATE // 100  # 10 ms: what is short is cut to the mesh's frames without delay
# Frames of Moshi's voice: two before it is played ride out what a network makes late. Beyond six the oldest is dropped,
# or the delay would stay for the rest of the call.
PREFILL, MOST_BUFFERED = 2, 6


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "talk", parents=[common], help="talk by microphone and loudspeaker", description="Talk to Moshi; Ctrl-C ends. "
        "While you talk, a line with text lets Moshi speak it, and an empty line interrupts it. Use headphones: Moshi "
        "hears itself through the loudspeaker.")
    parser.add_argument("--microphone", help="name or number of the device (python -m sounddevice lists them)")
    parser.add_argument("--speaker", help="likewise")
    add_sampling(parser)
    parser.set_defaults(run=run)


class Speaker:
    """Plays frames as they come; silence where there is none. The sound device reads from a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: deque[tuple[int, bytes]] = deque()
        self._playing = False
        self._rest = b""
        self.played: int | None = None
        """The last frame that was played in full."""

    def add(self, sequence: int, pcm: bytes) -> None:
        """A frame to play."""
        with self._lock:
            self._frames.append((sequence, pcm))
            while len(self._frames) > MOST_BUFFERED:
                self._frames.popleft()
            self._playing = self._playing or len(self._frames) >= PREFILL

    def drop(self) -> None:
        """Moshi was interrupted: fade out, and say no more of what is left."""
        with self._lock:
            rest = self._rest + b"".join(pcm for _, pcm in self._frames)
            self._frames.clear()
            fading = array.array("h", rest[:2 * PIECE])
            self._rest = array.array("h", (sample * (len(fading) - at) // len(fading)
                                           for at, sample in enumerate(fading))).tobytes()
            self._playing = False

    def read(self, size: int) -> bytes:
        """The next bytes for the loudspeaker."""
        with self._lock:
            while self._playing and len(self._rest) < size:
                if not self._frames:
                    self._playing = False
                    break
                self.played, pcm = self._frames.popleft()
                self._rest += pcm
            out, self._rest = self._rest[:size], self._rest[size:]
        return out.ljust(size, b"\0")


async def run(options: argparse.Namespace) -> None:
    """Talk until Ctrl-C, or the mesh ends the call."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise CommandFailed(f"no sound here ({error}); pip install 'moshimesh[cli]', and on Debian apt-get install "
                            "libportaudio2") from None
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[bytes] = asyncio.Queue(maxsize=100)  # 1 s; beyond that it is too late
    speaker, director = Speaker(), Director()

    def keep(piece: bytes) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            heard.put_nowait(piece)

    def from_microphone(data: Any, frames: int, time: Any, status: Any) -> None:
        loop.call_soon_threadsafe(keep, bytes(data))

    def to_speaker(data: Any, frames: int, time: Any, status: Any) -> None:
        data[:] = speaker.read(len(data))

    async def microphone() -> AsyncIterator[bytes]:
        while True:
            yield await heard.get()

    output = Output(options.json, options.events)
    try:
        microphone_stream = sounddevice.RawInputStream(
            RATE, PIECE, _device(options.microphone), 1, "int16", callback=from_microphone)
        speaker_stream = sounddevice.RawOutputStream(
            RATE, PIECE, _device(options.speaker), 1, "int16", callback=to_speaker)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise CommandFailed(f"the sound device can't be opened: {error}; `python -m sounddevice` lists them") from None
    with microphone_stream, speaker_stream:
        async with connect(options.target, credentials=options.credentials) as mesh:
            lines = asyncio.create_task(_lines(director, speaker)) if sys.stdin.isatty() else None
            try:
                async for event in mesh.converse(microphone(), sample_rate_hertz=RATE, api_key=options.key, align=True,
                                                 director=director, **sampling_of(options)):
                    if isinstance(event, Speech):
                        speaker.add(event.sequence, event.pcm)
                        if speaker.played is not None and event.sequence % 4 == 0:
                            director.played_out(speaker.played)
                    elif isinstance(event, ConversationEvent) and event.kind == "interrupted":
                        speaker.drop()
                    elif isinstance(event, Ready) and not options.json:
                        print("Speak! Ctrl-C ends.", file=sys.stderr)
                    output.show(event)
            finally:
                if lines is not None:
                    lines.cancel()


async def _lines(director: Director, speaker: Speaker) -> None:
    """What is typed: an empty line interrupts, any other is spoken by Moshi."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        text = line.decode(errors="replace").strip()
        if text:
            director.say(text)
        else:
            director.interrupt()
            speaker.drop()


def _device(name: str | None) -> int | str | None:
    return int(name) if name is not None and name.isdigit() else name
