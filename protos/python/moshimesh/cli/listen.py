"""`moshimesh listen`: follow a call that somebody else holds."""

from __future__ import annotations

import argparse
import array
import contextlib
import wave
from pathlib import Path
from typing import Any

from moshimesh.cli.call import wav_writer
from moshimesh.cli.output import Output
from moshimesh.cli.secret import grant_of_environment
from moshimesh.client import connect
from moshimesh.events import Speech
from moshimesh.listening import Listening, UserFrame

MOST_AHEAD = 64  # frames of the user that wait for their answers, which come within a few


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "listen", parents=[common], help="follow a call that somebody else holds", description="Print what Moshi says "
        "in a live call, from now on. Its grant (see `moshimesh grant`) comes from MOSHIMESH_GRANT or stdin, never "
        "from a flag, since ps shows flags.")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="write both voices to this WAV file: the user left, Moshi right")
    parser.add_argument("--events", action="store_true", help="show when each side starts and stops to speak, and more")
    parser.set_defaults(run=run)


async def run(options: argparse.Namespace) -> None:
    """Listen until the call is over."""
    output = Output(options.json, options.events)
    stereo: Stereo | None = None
    with contextlib.ExitStack() as files:
        async with connect(options.target, credentials=options.credentials) as mesh:
            async for item in mesh.listen(grant_of_environment(), audio=options.out is not None, api_key=options.key):
                if isinstance(item, Listening) and options.out is not None and stereo is None:
                    wav = files.enter_context(wav_writer(options.out, item.sample_rate_hertz, channels=2))
                    stereo = Stereo(wav, item.samples_per_frame)
                    files.callback(stereo.finish)
                if isinstance(item, UserFrame):
                    if stereo is not None:
                        stereo.user(item.sequence, item.pcm)
                    continue
                if isinstance(item, Speech) and stereo is not None:
                    stereo.model(item.sequence, item.pcm)
                output.show(item)


class Stereo:
    """Both sides beside each other, frame by frame: an answer is what the model says while it hears that frame. What is
    missing is silence.
    """

    def __init__(self, wav: wave.Wave_write, samples_per_frame: int) -> None:
        self._wav, self._silence = wav, bytes(2 * samples_per_frame)
        self._user: dict[int, bytes] = {}
        self._next: int | None = None  # the first frame that is not written

    def user(self, sequence: int, pcm: bytes) -> None:
        """A frame of the user."""
        self._user[sequence] = pcm
        if len(self._user) > MOST_AHEAD:
            self.model(min(self._user), self._silence)

    def model(self, sequence: int, pcm: bytes) -> None:
        """A frame of the model. All frames before it are written now."""
        first = min(sequence, *self._user) if self._user and self._next is None else self._next
        for number in range(sequence if first is None else first, sequence):
            self._write(number, self._silence)
        if first is None or sequence >= first:  # else it was heard before the call was resumed
            self._write(sequence, pcm)
            self._next = sequence + 1
        self._user = {number: left for number, left in self._user.items() if number > sequence}

    def finish(self) -> None:
        """Write what is left of the user."""
        for number in sorted(self._user):
            self._write(number, self._silence)

    def _write(self, number: int, model: bytes) -> None:
        both = array.array("h", bytes(2 * len(model)))
        both[::2], both[1::2] = array.array("h", self._user.get(number, self._silence)), array.array("h", model)
        self._wav.writeframesraw(both.tobytes())
