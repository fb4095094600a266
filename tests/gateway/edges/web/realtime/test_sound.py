"""Sound in the client's formats: what goes in at 8 kHz in eight bits a sample is what the mesh hears, and back."""

from __future__ import annotations

import numpy as np
import pytest

from services.gateway.edges import pcm
from services.gateway.edges.web.realtime.settings import A_LAW, MU_LAW, PCM, Format
from services.gateway.edges.web.realtime.sound import Mouth, ear_of
from tests.gateway.edges.web.realtime.told import FRAME, RATE

LAWS = {MU_LAW: pcm.G711_MU_LAW, A_LAW: pcm.G711_A_LAW}
SECONDS = 2


def sine(rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(SECONDS * rate) / rate)).astype(np.float32)


def loudness(sound: np.ndarray, rate: int, hertz: int) -> float:
    """Of one tone in the middle of a sound."""
    middle = sound[rate // 4:-rate // 4]
    return float(abs(np.mean(middle * np.exp(-2j * np.pi * hertz * np.arange(len(middle)) / rate)))) * 2


@pytest.mark.parametrize("kind", [MU_LAW, A_LAW])
def test_what_a_telephone_says_is_heard(kind: str) -> None:
    ear = ear_of(RATE)(Format(kind, 8000))
    data = LAWS[kind].encode(sine(8000))
    heard = np.concatenate([ear.decode(data[start:start + 160]) for start in range(0, len(data), 160)])
    assert len(heard) == SECONDS * RATE
    assert loudness(heard, RATE, 440) == pytest.approx(0.5, abs=0.01)
    assert loudness(heard, RATE, 5000) < 0.001


@pytest.mark.parametrize(("format", "read"), [
    (Format(MU_LAW, 8000), pcm.G711_MU_LAW), (Format(A_LAW, 8000), pcm.G711_A_LAW), (Format(PCM, 16000), pcm.S16LE),
    (Format(PCM, 48000), pcm.S16LE)])
def test_what_the_model_says_is_heard_on_a_telephone(format: Format, read: pcm.Format) -> None:
    mouth, sound = Mouth(RATE, lambda: format), sine(RATE)
    data = b"".join(mouth.encode(sound[start:start + FRAME]) for start in range(0, len(sound), FRAME))
    heard = read.decode(data + mouth.finish())
    assert len(heard) >= SECONDS * format.rate
    assert loudness(heard, format.rate, 440) == pytest.approx(0.5, abs=0.01)


def test_openai_s_own_format_is_exact() -> None:
    mouth = Mouth(RATE, Format)
    sound = (np.arange(-960, 960) / 32768).astype(np.float32)
    data = mouth.encode(sound)
    assert np.array_equal(ear_of(RATE)(Format()).decode(data), sound) and mouth.finish() == b""


def test_a_response_keeps_the_format_in_which_it_began() -> None:
    formats = [Format(), Format(MU_LAW, 8000)]
    mouth = Mouth(RATE, lambda: formats[0])
    assert len(mouth.encode(np.zeros(FRAME, np.float32))) == 2 * FRAME
    formats.reverse()
    assert len(mouth.encode(np.zeros(FRAME, np.float32))) == 2 * FRAME
    mouth.finish()
    assert len(mouth.encode(np.zeros(FRAME, np.float32))) == FRAME // 3
