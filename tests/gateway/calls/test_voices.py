"""Conversations that begin with a voice of a folder, or a text."""

from __future__ import annotations

import asyncio
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import New, Opening, Resumed
from services.gateway.calls.events import Event, Speech
from services.gateway.calls.voices import Voices
from services.mesh.errors import InvalidRequest, NoFreeSlot
from tests.gateway.fake_codec import FRAME, RATE, SILENCE, FakeCodec, codes_of
from tests.gateway.fake_lm import FakeLm
from tests.gateway.house import FRAMES, House, cut_off, expected, spoken
from tests.gateway.redis_server import RedisServer

SECONDS = 2


def recorded(path: Path, samples: np.ndarray, rate: int = RATE, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as wav:
        wav.setparams((channels, 2, rate, 0, "NONE", ""))
        wav.writeframes(samples.astype("<i2").tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("lena", "Paul-2")):
        recorded(tmp_path / f"{name}.wav", np.arange(SECONDS * RATE) * 100 + number)
    (tmp_path / "README.md").write_text("not a voice")
    return tmp_path


@pytest.fixture
async def house(redis_server: RedisServer, folder: Path) -> AsyncIterator[House]:
    async with House(redis_server.url, voices=str(folder)) as house:
        yield house


def opening(voice: str = "", text: str = "") -> Opening:
    return Opening(New(lm_pb2.Sampling(seed=1), voice=voice, text_prompt=text), live=False)


def prompt(folder: Path, voice: str = "", text: str = "") -> lm_pb2.StepPrompt:
    """What the language model gets."""
    codes: list[int] = []
    if voice:
        with wave.open(str(folder / f"{voice}.wav")) as wav:
            pcm = np.frombuffer(wav.readframes(wav.getnframes()), "<i2").astype("<f4") / np.float32(32768)
        for begin in range(0, len(pcm) - FRAME + 1, FRAME):
            codes += codes_of(pcm[begin:begin + FRAME])
    return lm_pb2.StepPrompt(text=text, voice_codes=codes, silence_codes=SILENCE)


def tokens(events: list[Event]) -> list[list[int]]:
    return [[one.text_token, *one.codes] for one in events if isinstance(one, Speech)]


@pytest.mark.parametrize(("voice", "text"), [("lena", ""), ("Paul-2", "Be kind."), ("", "Be kind.")])
async def test_a_conversation_begins_with_what_it_asks_for(house: House, folder: Path, voice: str, text: str) -> None:
    for _ in range(2):
        said = tokens([event async for event in house.hold(opening(voice, text), spoken(0, FRAMES))])
        assert said == expected(FRAMES, prompt=prompt(folder, voice, text))
    assert said != expected(FRAMES)


async def test_a_resumed_conversation_has_begun_as_it_did(
        house: House, folder: Path, redis_server: RedisServer) -> None:
    """At a gateway that does not have the voice."""
    ready, said = await cut_off(house, 10, opening("lena", "Be kind."))
    async with House(redis_server.url) as there:
        last = said[-1].context.sequence
        rest = [event async for event in there.hold(Opening(Resumed(ready.resume_handle, last + 1, last),
                                                            live=False), spoken(last + 1, FRAMES))]
        assert tokens(list(said)) + tokens(rest) == expected(FRAMES, prompt=prompt(folder, "lena", "Be kind."))


async def test_a_lost_replica_changes_no_token(redis_server: RedisServer, folder: Path) -> None:
    spare = FakeLm()
    async with House(redis_server.url, spare_lms=(spare,), voices=str(folder)) as house:
        said: list[Event] = []
        async for event in house.hold(opening("lena"), spoken(0, FRAMES)):
            said.append(event)
            if isinstance(event, Speech) and len(tokens(said)) == 5:
                await (house.lm if house.lm.held else spare).kill()
        assert tokens(said) == expected(FRAMES, prompt=prompt(folder, "lena"))


async def test_a_voice_is_encoded_once(house: House) -> None:
    held = asyncio.gather(*(_hold(house, opening("lena")) for _ in range(3)))
    most = 0
    while not held.done():
        most = max(most, house.codec.held["encode"])
        await asyncio.sleep(0)
    assert most <= 4  # three callers and at most one voice
    assert house.codec.held == {"encode": 0, "decode": 0}
    assert len(house.desk._resources.voices._codes) == 1


async def test_a_codec_that_is_full_refuses_the_voice_and_not_the_next_one(
        redis_server: RedisServer, folder: Path) -> None:
    async with House(redis_server.url, codec=FakeCodec(slots=0), voices=str(folder)) as house:
        with pytest.raises(NoFreeSlot):
            await _hold(house, opening("lena"))
        house.codec.slots = 8
        await house.fleet.refresh()
        assert tokens(await _hold(house, opening("lena"))) == expected(FRAMES, prompt=prompt(folder, "lena"))


@pytest.mark.parametrize("voice", [
    "nobody", "../lena", "/etc/passwd", "lena.wav", "README", "LENA", "lena\0", "x" * 10_000])
async def test_a_voice_that_is_not_there_is_refused(house: House, voice: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _hold(house, opening(voice))
    assert caught.value.reason == "UNKNOWN_VOICE"
    assert caught.value.metadata == {"field": "config.voice", "served": "Paul-2, lena"}


async def test_a_long_text_is_refused(house: House) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _hold(house, opening(text="x" * 4001))
    assert (caught.value.reason, caught.value.metadata["field"]) == ("BAD_PROMPT", "config.text_prompt")


async def test_voices_are_listed_by_name(house: House) -> None:
    assert [(voice.name, voice.duration_ms) for voice in house.desk.voices] == [("Paul-2", 2000), ("lena", 2000)]


@pytest.mark.parametrize(("name", "samples", "channels", "said"), [
    ("a b.wav", 100, 1, "letters"), ("stereo.wav", 100, 2, "mono"), ("long.wav", 31 * RATE, 1, "30 s"),
    ("empty.wav", 0, 1, "30 s")])
def test_what_can_be_no_voice_is_named_at_the_start(
        folder: Path, name: str, samples: int, channels: int, said: str) -> None:
    recorded(folder / name, np.zeros(samples), channels=channels)
    with pytest.raises(ValueError, match=said):
        Voices(str(folder))


def test_a_file_that_is_no_sound_is_named_at_the_start(folder: Path, tmp_path: Path) -> None:
    (folder / "text.wav").write_text("hello")
    with pytest.raises(ValueError, match="no WAV file"):
        Voices(str(folder))


async def test_a_voice_at_another_rate_is_refused(house: House, folder: Path) -> None:
    recorded(folder / "other.wav", np.zeros(100), rate=200)
    house.desk._resources.voices.__init__(str(folder))  # type: ignore[misc]
    with pytest.raises(InvalidRequest, match="200 Hz"):
        await _hold(house, opening("other"))


async def _hold(house: House, asked: Opening) -> list[Event]:
    return [event async for event in house.hold(asked, spoken(0, FRAMES))]
