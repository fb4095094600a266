"""Callers of `/api/chat`, for tests and benchmarks: both dialects of Moshi's protocol, and Moshi's own client.

The dialects are written from the protocol alone, with the library that Moshi's clients use for Opus. A caller speaks a
recording at its pace, as a microphone would, from the moment that it is connected; it hangs up when it has heard the
answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import numpy as np
import numpy.typing as npt
import sphn

from harness.local_mesh import ROOT

Pcm = npt.NDArray[np.float32]
RATE = 24_000
HANDSHAKE, AUDIO, TEXT, CONTROL, METADATA, ERROR, PING = range(7)
LAST_KIND = 7  # Moshi's web client throws at any above
PACKET_MS = {"python": 80, "rust": 20}
QUIET_S = 3.0  # without an answer after the last audio: the call is over
# What the web client's schema wants of metadata.
NUMBERS = ("text_temperature", "text_topk", "audio_temperature", "audio_topk", "pad_mult", "repetition_penalty_context",
           "repetition_penalty")
TEXTS = ("lm_model_file", "instance_name")
BUILD_INFO = ("build_timestamp", "build_date", "git_branch", "git_timestamp", "git_date", "git_hash", "git_describe",
              "rustc_host_triple", "rustc_version", "cargo_target_triple")


class ProtocolBroken(Exception):
    """The server has sent what a client of this dialect can't take."""


@dataclass
class HeldCall:
    """What a caller heard."""

    audio: Pcm = field(default_factory=lambda: np.zeros(0, np.float32))
    """The model's speech, float32 [samples] at 24 kHz."""
    text: str = ""
    metadata: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    """What the server's Error message said; empty when there was none."""
    close_code: int | None = None


async def hold(url: str, pcm: Pcm, dialect: Literal["python", "rust"] = "python", *,
               query: Mapping[str, str] | None = None, packet_ms: int = 0, headers: Mapping[str, str] | None = None,
               quiet_s: float = QUIET_S) -> HeldCall:
    """Hold a call at this HTTP address: speak, listen, hang up. `packet_ms` 0 is the dialect's own.

    Raises ProtocolBroken, aiohttp.ClientError.
    """
    asked = dict(query or {})
    if dialect == "rust":
        asked.setdefault("text_temperature", "0.8")
    async with aiohttp.ClientSession() as session, session.ws_connect(
            f"{url}/api/chat", params=asked, headers=headers) as socket:
        ear = Ear(dialect)
        speaking = asyncio.create_task(speak(socket, pcm, packet_ms or PACKET_MS[dialect]))
        try:
            await _listen(socket, ear, speaking, len(pcm), quiet_s)
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
        await socket.close()
        return ear.call(socket.close_code)


async def speak(socket: aiohttp.ClientWebSocketResponse, pcm: Pcm, packet_ms: int) -> None:
    """Send a recording at its pace, a page a message, until the server hangs up."""
    loop, writer, samples = asyncio.get_running_loop(), sphn.OpusStreamWriter(RATE), RATE * packet_ms // 1000
    began = loop.time()
    for at in range(0, len(pcm), samples):
        await asyncio.sleep(max(0.0, began + at / RATE - loop.time()))
        page = writer.append_pcm(np.pad(pcm[at:at + samples], (0, max(0, samples - len(pcm[at:])))))
        with contextlib.suppress(ConnectionError):
            await socket.send_bytes(bytes([AUDIO]) + page)


async def _listen(socket: aiohttp.ClientWebSocketResponse, ear: Ear, speaking: asyncio.Task[None], samples: int,
                  quiet_s: float) -> None:
    """Until the server hangs up, or has answered nearly all and says no more."""
    while True:
        try:
            message = await socket.receive(quiet_s)  # in vain when the last answer comes before the last word
        except (asyncio.TimeoutError, TimeoutError):
            if speaking.done():
                return
            continue
        if message.type is not aiohttp.WSMsgType.BINARY:
            return
        ear.hear(message.data)
        if speaking.done() and ear.samples >= samples:
            return


class Ear:
    """Takes a server's messages as a strict client of the dialect does."""

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self._reader = sphn.OpusStreamReader(RATE)
        self._heard: list[Pcm] = []
        self._held = HeldCall()
        self.open = False
        self.samples = 0

    def hear(self, message: bytes) -> None:
        """Raises ProtocolBroken."""
        if not message or message[0] > LAST_KIND:
            raise ProtocolBroken(f"a message of kind {message[:1].hex() or 'none'}")
        kind, payload = message[0], message[1:]
        if kind == HANDSHAKE:
            if payload != (bytes(8) if self._dialect == "rust" else b""):
                raise ProtocolBroken(f"a handshake with {len(payload)} bytes")
            if self._dialect == "rust" and not self._held.metadata:
                raise ProtocolBroken("a handshake before the metadata")
            self.open = True
        elif kind == METADATA:
            told = json.loads(payload)
            if not self.open:
                check_metadata(told)
            self._held.metadata.append(told)
        elif kind == ERROR:
            self._held.error = payload.decode()
        elif not self.open:
            raise ProtocolBroken(f"a message of kind {kind} before the handshake")
        elif kind == AUDIO:
            pcm = self._reader.append_bytes(payload)
            self._heard.append(pcm)
            self.samples += len(pcm)
        elif kind == TEXT:
            self._held.text += payload.decode()

    def call(self, close_code: int | None) -> HeldCall:
        """All of it."""
        self._held.audio = np.concatenate(self._heard) if self._heard else self._held.audio
        self._held.close_code = close_code
        return self._held


def check_metadata(told: Mapping[str, Any]) -> None:
    """Raise ProtocolBroken for metadata that the web client would not take."""
    numbers = [told.get(name) for name in NUMBERS]
    texts = [told.get(name) for name in TEXTS] + [told.get("build_info", {}).get(name) for name in BUILD_INFO]
    if not all(type(one) in (int, float) for one in numbers) or not all(isinstance(one, str) for one in texts):
        raise ProtocolBroken(f"metadata that is not complete: {sorted(told)}")


async def hold_moshi_client(url: str, pcm: Pcm) -> HeldCall:
    """A call of `python -m moshi.client`, whose microphone says this and whose loudspeaker is recorded.

    Raises RuntimeError when it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        said, heard = f"{folder}/said.npy", f"{folder}/heard.npy"
        np.save(said, pcm)
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "harness.moshi_client", said, heard, "--url", url, cwd=ROOT,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        try:
            text, log = await client.communicate()
        finally:
            if client.returncode is None:
                client.kill()
                await client.wait()
        if client.returncode:
            raise RuntimeError(f"moshi.client failed: {log.decode()[-2000:]}")
        audio = np.load(heard)
    return HeldCall(audio, text.decode(), error="lost" if b"Lost connection" in log else "")
