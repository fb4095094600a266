"""`moshimesh call FILE`: hold a conversation with a recording."""

from __future__ import annotations

import argparse
import contextlib
import wave
from pathlib import Path
from typing import Any

from moshimesh.cli.arguments import add_sampling, sampling_of
from moshimesh.cli.output import CommandFailed, Output
from moshimesh.client import connect
from moshimesh.events import Ready, Speech


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser("call", parents=[common], help="hold a conversation with a WAV file",
                                 description="Send a WAV file (16 bit, mono or stereo), print what Moshi says.")
    parser.add_argument("file", type=Path, help="a WAV file of 16 bit samples; of several channels the first counts")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write Moshi's voice to this WAV file")
    parser.add_argument("--live", action="store_true", help="at the speed of speech, not as fast as it goes")
    add_sampling(parser)
    parser.set_defaults(run=run)


async def run(options: argparse.Namespace) -> None:
    """Hold it."""
    pcm, rate = read_wav(options.file)
    output = Output(options.json, options.events)
    with contextlib.ExitStack() as files:
        out = files.enter_context(_writer(options.out, rate)) if options.out else None
        async with connect(options.target, credentials=options.credentials) as mesh:
            async for event in mesh.converse(pcm, pacing="live" if options.live else "offline", api_key=options.key,
                                             sample_rate_hertz=rate, **sampling_of(options)):
                if isinstance(event, Speech) and out is not None:
                    out.writeframes(event.pcm)
                if not isinstance(event, Ready) or options.json:
                    output.show(event)


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


def _writer(path: Path, rate: int) -> wave.Wave_write:
    try:
        wav = wave.open(str(path), "wb")  # noqa: SIM115
    except OSError as error:
        raise CommandFailed(f"{path} can't be written: {error.strerror}") from None
    wav.setnchannels(1)
    wav.setsampwidth(2)
    wav.setframerate(rate)
    return wav
