"""`moshimesh replay FILE`: step an exported conversation again, and show what differs."""

from __future__ import annotations

import argparse
import json
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moshimesh.cli.output import CommandFailed
from moshimesh.client import Mesh, connect
from moshimesh.lm.v1 import lm_pb2
from moshimesh.recording import Recording

SETTINGS = ("text_temperature", "text_top_k", "audio_temperature", "audio_top_k", "seed")


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "replay", parents=[common], help="step an exported conversation again", description="Step an exported "
        "conversation again: with its own settings to see that it gives the same tokens, or with others beside them.")
    parser.add_argument("file", type=Path, help="what `moshimesh export` or `moshimesh call --record` wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write Moshi's voice to this WAV file")
    parser.add_argument("--model", default="", help="another model than the recording's")
    for name in SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float if "temperature" in name else int)
    parser.set_defaults(run=run)


async def run(options: argparse.Namespace) -> None:
    """Replay it."""
    try:
        recording = Recording.load(options.file)
    except OSError as error:
        raise CommandFailed(f"{options.file} can't be read: {error.strerror}") from None
    sampling = lm_pb2.Sampling()
    sampling.CopyFrom(recording.sampling)
    for name in SETTINGS:
        if (value := getattr(options, name)) is not None:
            setattr(sampling, name, value)
    other = bool(options.model) or sampling != recording.sampling
    async with connect(options.target, credentials=options.credentials) as mesh:
        before = await _replay(mesh, recording, "", recording.sampling, options) if other else None
        now = await _replay(mesh, recording, options.model, sampling, options)
        rate = (await mesh.info(api_key=options.key)).sample_rate_hertz
    if options.out:
        with wave.open(str(options.out), "wb") as wav:
            wav.setparams((1, 2, rate, 0, "NONE", ""))
            wav.writeframes(bytes(now.pcm))
    if options.json:
        print(json.dumps({"steps": now.steps, "equal": now.equal, "first_difference": now.first_difference,
                          "text": now.text, "text_before": (before or now).text}))
        return
    if before is not None:
        print(f"- {before.text.strip()}\n+ {now.text.strip()}")
    else:
        print(now.text.strip())
    print(f"{now.steps} steps: " + ("the same tokens" if now.equal == now.steps else
                                    f"{now.equal} with the same tokens, the first that differs is step "
                                    f"{now.first_difference}"))


@dataclass
class _Heard:
    """What a replay said."""

    text: str = ""
    pcm: bytearray = field(default_factory=bytearray)
    steps: int = 0
    equal: int = 0
    first_difference: int | None = None


async def _replay(mesh: Mesh, recording: Recording, model: str, sampling: lm_pb2.Sampling,
                  options: argparse.Namespace) -> _Heard:
    heard = _Heard()
    async for frame in mesh.replay(recording, model=model, sampling=sampling, audio=bool(options.out),
                                   api_key=options.key):
        heard.text += frame.text
        heard.pcm += frame.pcm
        if frame.text_token is None:
            continue
        heard.steps += 1
        if recording.tokens(frame.step) == (frame.text_token, *frame.codes):
            heard.equal += 1
        elif heard.first_difference is None:
            heard.first_difference = frame.step
    return heard
