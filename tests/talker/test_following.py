"""The committed checkpoint does what it is told: through the mesh, with the voices that `make run` offers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from harness.local_mesh import VOICES, bundled_voices
from talker import texts
from talker.config import FRAME_SAMPLES, GREET_AT
from talker.loop import Answer
from talker.pitch import pitch_hz
from talker.samples import read_wav
from talker.through_mesh import ThroughMesh
from tests.talker.test_checkpoint import FOLDER

pytestmark = pytest.mark.slow  # a mesh
SILENCE = np.zeros((GREET_AT + 40) * FRAME_SAMPLES, np.float32)  # it greets, and says it to its end
ASKED = {"nothing": {}, "slt": {"voice": "slt"}, "awb": {"voice": "awb"},
         "brief": {"text_prompt": texts.BRIEF.asked[0]}, "cheerful": {"text_prompt": texts.CHEERFUL.asked[0]},
         "both": {"voice": "awb", "text_prompt": texts.CHEERFUL.asked[0]}}


@pytest.fixture(scope="module")
def greetings() -> Iterator[dict[str, Answer]]:
    """Of calls in which nobody speaks."""
    with ThroughMesh(FOLDER, voices=VOICES) as mesh:
        yield dict(zip(ASKED, mesh.calls([(SILENCE, options) for options in ASKED.values()]), strict=True))


def test_the_voices_of_make_run_are_those_of_the_bundled_checkpoint_alone() -> None:
    assert bundled_voices("checkpoints/talker") == ("--voices", str(VOICES))
    assert bundled_voices("kyutai/moshiko-pytorch-bf16") == ()


def test_it_speaks_in_the_voice_that_a_call_begins_with(greetings: dict[str, Answer]) -> None:
    pitches = {name: pitch_hz(read_wav(VOICES / f"{name}.wav")) for name in ("slt", "awb")}
    nearest = {asked: min(pitches, key=lambda name: abs(np.log(pitch_hz(answer.pcm) / pitches[name])))
               for asked, answer in greetings.items()}
    assert nearest == {"nothing": "slt", "slt": "slt", "awb": "awb", "brief": "slt", "cheerful": "slt", "both": "awb"}


def test_it_greets_in_the_manner_that_a_text_asks_for(greetings: dict[str, Answer]) -> None:
    said = {asked: answer.text.strip() for asked, answer in greetings.items()}
    usual, cheerful = texts.PLAIN.greeting, texts.CHEERFUL.greeting
    assert said == {"nothing": usual, "slt": usual, "awb": usual, "brief": texts.BRIEF.greeting, "cheerful": cheerful,
                    "both": cheerful}
