"""The voices that a conversation can begin with: recordings in a folder, known by the names of their files.

A voice becomes codes when it is first asked for, at a codec replica like any caller's audio, and the codes are kept.
"""

from __future__ import annotations

import asyncio
import re
import wave
from dataclasses import dataclass
from pathlib import Path

from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import New
from services.gateway.path.lease import Leaser
from services.gateway.path.memory import EncoderMemory
from services.gateway.path.stage import ANSWER_S
from services.gateway.peers.fleet import Fleet
from services.gateway.peers.models import Model
from services.gateway.peers.replicas import ENCODE
from services.mesh.errors import InvalidRequest, PeerLost
from services.mesh.incoming import next_within
from services.mesh.samples import from_s16

LONGEST_S = 30  # PersonaPlex's are 10 to 20 s; a model hears no more of a voice in more of it
MOST_VOICES = 1000
LONGEST_TEXT = 4000  # characters of a text prompt
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Voice:
    """A recording of somebody who speaks."""

    name: str
    duration_ms: int
    sample_rate_hertz: int
    path: Path

    @classmethod
    def of(cls, path: Path) -> Voice:
        """Raises ValueError when it is not one."""
        try:
            with wave.open(str(path)) as wav:
                channels, width, rate, samples = wav.getparams()[:4]
        except (wave.Error, EOFError) as error:
            raise ValueError(f"--voices: {path.name} is no WAV file ({error})") from None
        if not NAME.fullmatch(path.stem):
            raise ValueError(f"--voices: {path.name} must be named in letters, digits, - and _, at most 64")
        if (channels, width) != (1, 2) or not 0 < samples <= LONGEST_S * rate:
            raise ValueError(f"--voices: {path.name} must be mono, of 16 bits, at most {LONGEST_S} s long")
        return cls(path.stem, samples * 1000 // rate, rate, path)


class Voices:
    """The voices of a folder."""

    def __init__(self, folder: str) -> None:
        """No folder: no voices. Raises ValueError when a file in it can't be one."""
        paths = sorted(Path(folder).glob("*.wav")) if folder else []
        if folder and not paths:
            raise ValueError(f"--voices {folder}: there is no .wav file in this folder")
        if len(paths) > MOST_VOICES:
            raise ValueError(f"--voices {folder}: more than {MOST_VOICES} voices")
        self._voices = {path.stem: Voice.of(path) for path in paths}
        self._codes: dict[tuple[str, Model], list[int]] = {}
        self._encoding = asyncio.Lock()  # one at a time: each takes a slot of the codec for about a second

    @property
    def all(self) -> list[Voice]:
        """By name."""
        return list(self._voices.values())

    def check(self, asked: New) -> None:
        """Refuse a voice that is not there, and a text that is too long. Raises InvalidRequest."""
        if asked.voice and asked.voice not in self._voices:
            raise InvalidRequest("UNKNOWN_VOICE", "this mesh has no voice of this name; ListVoices names those that it "
                                 "has", field="config.voice", served=", ".join(list(self._voices)[:20]))
        if len(asked.text_prompt) > LONGEST_TEXT:
            raise InvalidRequest("BAD_PROMPT", f"text_prompt must have at most {LONGEST_TEXT} characters, got "
                                 f"{len(asked.text_prompt)}", field="config.text_prompt", accepted=f"0..{LONGEST_TEXT}")

    async def prompt(self, fleet: Fleet, model: Model, asked: New) -> lm_pb2.StepPrompt | None:
        """What a conversation begins with, if it asks for anything. Raises MeshError."""
        if not asked.voice and not asked.text_prompt:
            return None
        codec, lm = fleet.codec.info(model.codec_id), fleet.lm.info(model.model_id)
        if not codec.silence_codes:
            raise InvalidRequest("CONTROLS_UNSUPPORTED", "a codec of an older version is served, which can't begin "
                                 "conversations with a prompt", field="config")
        codes = await self._codes_of(fleet, model, self._voices[asked.voice]) if asked.voice else ()
        return lm_pb2.StepPrompt(text=asked.text_prompt, voice_codes=codes,
                                 silence_codes=codec.silence_codes[:max(lm.user_codebooks, lm.own_codebooks)])

    async def _codes_of(self, fleet: Fleet, model: Model, voice: Voice) -> list[int]:
        """The model's own codes of a voice, frame by frame. Raises MeshError."""
        async with self._encoding:
            if (voice.name, model) not in self._codes:
                self._codes[voice.name, model] = await _encoded(fleet, model, voice)
        return self._codes[voice.name, model]


async def _encoded(fleet: Fleet, model: Model, voice: Voice) -> list[int]:
    codec, own_codebooks = fleet.codec.info(model.codec_id), fleet.lm.info(model.model_id).own_codebooks
    if voice.sample_rate_hertz != codec.sample_rate_hertz:
        raise InvalidRequest("UNKNOWN_VOICE", f"the voice is recorded at {voice.sample_rate_hertz} Hz, and the model "
                             f"speaks at {codec.sample_rate_hertz}", field="config.voice")
    with wave.open(str(voice.path)) as wav:
        pcm = from_s16(wav.readframes(wav.getnframes()))
    samples = codec.samples_per_frame
    memory = EncoderMemory(f"voice-{voice.name}", 0, own_codebooks)
    lease = await Leaser(fleet.codec, ENCODE, model.codec_id, memory).lease(lambda: 0)
    codes: list[int] = []
    try:
        for begin in range(0, len(pcm) - samples + 1, samples):
            lease.call.send(codec_pb2.EncodeRequest(frame=audio_pb2.PcmFrame(pcm=pcm[begin:begin + samples].tobytes())))
            answer = await next_within(lease.call, ANSWER_S)
            codes += answer.frame.codes
    except (StopAsyncIteration, asyncio.TimeoutError, TimeoutError):
        raise PeerLost(f"the codec replica at {lease.replica.address} did not encode a voice", peer="codec") from None
    finally:
        lease.call.cancel()
    return codes
