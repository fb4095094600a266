"""`moshimesh call FILE`: hold a conversation with a recording."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from moshimesh.cli.arguments import add_sampling, sampling_of
from moshimesh.cli.output import CommandFailed, Output
from moshimesh.cli.record import POLL_S, Recorder
from moshimesh.client import Mesh, connect
from moshimesh.events import Event, MeshError, Ready, Speech

PIECE_MS = 80
WRITTEN_S = 1.2  # until the mesh has written the last steps; it does so twice a second
LAST_ANSWERS_S = 30.0


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser("call", parents=[common], help="hold a conversation with a WAV file",
                                 description="Send a WAV file (16 bit, mono or stereo), print what Moshi says.")
    parser.add_argument("file", type=Path, help="a WAV file of 16 bit samples; of several channels the first counts")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write Moshi's voice to this WAV file")
    parser.add_argument("--record", type=Path, metavar="FILE", help="save the conversation as tokens, for replay; the "
                        "steps of the last moment before its end are not in it")
    parser.add_argument("--live", action="store_true", help="at the speed of speech, not as fast as it goes")
    add_sampling(parser)
    parser.set_defaults(run=run)


async def run(options: argparse.Namespace) -> None:
    """Hold it."""
    pcm, rate = read_wav(options.file)
    output = Output(options.json, options.events)
    with contextlib.ExitStack() as files:
        out = files.enter_context(wav_writer(options.out, rate)) if options.out else None
        async with connect(options.target, credentials=options.credentials) as mesh:
            recording = _Recorded(mesh, pcm, rate, options)
            async for event in mesh.converse(recording.audio() if options.record else pcm,
                                             pacing="live" if options.live else "offline", api_key=options.key,
                                             sample_rate_hertz=rate, **sampling_of(options)):
                if isinstance(event, Speech) and out is not None:
                    out.writeframes(event.pcm)
                recording.heard(event)
                if not isinstance(event, Ready) or options.json:
                    output.show(event)
            if options.record:
                recording.save(options.record)


class _Recorded:
    """Exports a call while it lasts, and once more before it ends: then the mesh forgets what was said."""

    def __init__(self, mesh: Mesh, pcm: bytes, rate: int, options: argparse.Namespace) -> None:
        self._mesh, self._pcm, self._rate, self._options = mesh, pcm, rate, options
        self._recorder: Recorder | None = None
        self._answered = 0  # frames

    def heard(self, event: Event) -> None:
        """Take an event of the call."""
        if isinstance(event, Ready):
            self._ready = event
            self._recorder = Recorder(self._mesh, event.resume_handle, self._options.key)
        self._answered += isinstance(event, Speech)

    async def audio(self) -> AsyncIterator[bytes]:
        """The recording, piece by piece; the last one is followed by a moment without any, for the last export."""
        piece = 2 * (self._rate * PIECE_MS // 1000)
        now = asyncio.get_running_loop().time
        began, exported_at = now(), now()
        for number, begin in enumerate(range(0, len(self._pcm), piece)):
            if self._options.live:
                await asyncio.sleep(max(began + number * PIECE_MS / 1000 - now(), 0))
            yield self._pcm[begin:begin + piece]
            if now() - exported_at > POLL_S:
                exported_at = now()
                await self._export()
        frames = len(self._pcm) // 2 * self._ready.sample_rate_hertz // self._rate // self._ready.samples_per_frame
        deadline = now() + LAST_ANSWERS_S
        while self._answered < frames - self._ready.delay_frames and now() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(WRITTEN_S)
        await self._export()

    def save(self, path: Path) -> None:
        """Write it."""
        if self._recorder is None or self._recorder.recording is None:
            raise CommandFailed("the mesh kept nothing of this call, so there is no recording of it")
        self._recorder.recording.save(path)

    async def _export(self) -> None:
        assert self._recorder is not None
        with contextlib.suppress(MeshError):  # the mesh can't keep conversations now; a later export has it
            await self._recorder.take()


def read_wav(path: Path) -> tuple[bytes, int]:
    """Samples of the first channel, 16 bit, and their rate in Hz. Raises CommandFailed."""
    try:
        with wave.open(str(path)) as wav:
            if wav.getsampwidth() != 2:
                raise CommandFailed(f"{path} has samples of {8 * wav.getsampwidth()} bits; make them 16, such as with "
                                    f"`sox {path} -b 16 out.wav`")
            samples = memoryview(wav.readframes(wav.getnframes())).cast("h")
            return bytes(samples[::wav.getnchannels()]), wav.getframerate()
    except (OSError, wave.Error, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it ends early"
        raise CommandFailed(f"{path} can't be read as WAV: {reason}") from None


def wav_writer(path: Path, rate: int, channels: int = 1) -> wave.Wave_write:
    """A WAV file of 16 bit samples, to be written. Raises CommandFailed."""
    try:
        wav = wave.open(str(path), "wb")  # noqa: SIM115
    except OSError as error:
        raise CommandFailed(f"{path} can't be written: {error.strerror}") from None
    wav.setnchannels(channels)
    wav.setsampwidth(2)
    wav.setframerate(rate)
    return wav
