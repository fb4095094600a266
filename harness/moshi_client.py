"""Moshi's own client, `python -m moshi.client`, with a stand-in for the sound device.

    python -m harness.moshi_client SAID.npy HEARD.npy [the client's own flags]

Its microphone says a recording, float32 [samples] at 24 kHz, and then is silent; some seconds later somebody presses
Ctrl-C, as a person would. What its loudspeaker played is written down. Nothing of the client itself is changed.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

SILENCE_S = 3.0  # after the recording, for the rest of the answer
HANGS_UP_S = 0.3  # from the last audio to Ctrl-C: else the client would report what it could not send any more

Pcm = npt.NDArray[np.float32]


class Stream:
    """A stream of sounddevice: calls back once a block, at the pace of the device."""

    def __init__(self, *, samplerate: float, blocksize: int, channels: int, callback: Callable[..., None]) -> None:
        self._block_s, self._shape, self._callback = blocksize / samplerate, (blocksize, channels), callback
        self._stopped = threading.Event()

    def __enter__(self) -> Stream:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            due += self._block_s
            self.block(self._shape)

    def block(self, shape: tuple[int, int]) -> None:
        """One block of sound."""
        raise NotImplementedError

    def call_back(self, block: Pcm) -> None:
        """The client's turn."""
        self._callback(block, len(block), None, None)


def microphone(said: Pcm) -> type[Stream]:
    """A microphone in front of which somebody says this."""

    class Microphone(Stream):
        at = 0

        def block(self, shape: tuple[int, int]) -> None:
            part = said[self.at:self.at + shape[0]]
            self.at += shape[0]
            self.call_back(np.pad(part, (0, shape[0] - len(part)))[:, None])
            if self.at - len(said) > SILENCE_S * shape[0] / self._block_s:
                self._stopped.set()
                time.sleep(HANGS_UP_S)
                os.kill(os.getpid(), signal.SIGINT)

    return Microphone


def loudspeaker(heard: list[Pcm]) -> type[Stream]:
    """A loudspeaker that remembers."""

    class Loudspeaker(Stream):
        def block(self, shape: tuple[int, int]) -> None:
            block = np.empty(shape, np.float32)
            self.call_back(block)
            heard.append(block[:, 0])

    return Loudspeaker


def main() -> None:
    """Run the client until its microphone has said all."""
    said_path, heard_path, *flags = sys.argv[1:]
    # Shells start jobs in the background with SIGINT ignored, and a client that ignores it never hangs up.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    said: Pcm = np.load(said_path)
    heard: list[Pcm] = []
    device: Any = ModuleType("sounddevice")
    device.InputStream, device.OutputStream = microphone(said), loudspeaker(heard)
    sys.modules["sounddevice"] = device
    sys.argv = ["moshi.client", *flags]
    runpy.run_module("moshi.client", run_name="__main__")
    np.save(heard_path, np.concatenate(heard))


if __name__ == "__main__":
    main()
