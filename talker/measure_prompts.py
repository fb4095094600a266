"""`python -m talker.measure_prompts`: whether prompts are followed, in greedy calls through the mesh.

The voice is judged by its pitch, the manner by what is said.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talker import synth, texts
from talker.config import FRAME_SAMPLES, Work
from talker.loop import Answer
from talker.pitch import pitch_hz
from talker.samples import write_wav
from talker.stream import Speech
from talker.through_mesh import ThroughMesh

FRAMES = 120  # 9.6 s of each call
RECORDINGS = 4  # of each voice, with sentences that no training had
ASKS = 3  # texts of each kind
OTHER_SEED = 99  # of texts that ask for nothing


@dataclass(frozen=True)
class Call:
    """A call and what should come of it."""

    voice: str | None
    """Of synth.REPLY_VOICES; None: without a voice prompt."""
    manner: texts.Manner
    text: str
    known: bool
    """Whether the training had this text."""
    pcm: np.ndarray
    recording: int

    @property
    def options(self) -> dict[str, str]:
        """How it is opened."""
        return {"voice": f"{self.voice}-{self.recording}" if self.voice else "", "text_prompt": self.text}


def record(folder: Path) -> dict[str, float]:
    """Write each voice's recordings into a folder; each voice's pitch in them, Hz."""
    pitches = {}
    for engine, voice in synth.REPLY_VOICES:
        spoken = [synth.speak(text, engine, voice) for text in texts.HELDOUT[:RECORDINGS]]
        for i, pcm in enumerate(spoken):
            write_wav(folder / f"{voice}-{i}.wav", pcm)
        pitches[voice] = pitch_hz(np.concatenate(spoken)) or 0.0
    return pitches


def plan(work: Work, seed: int = 7) -> list[Call]:
    """Every voice with every text, each once in a call in which somebody speaks and once in a silent one."""
    rng, speech = np.random.default_rng(seed), Speech(work, "heldout_voice")
    others = texts.training_sentences(ASKS, OTHER_SEED)
    asked = [(texts.PLAIN, "", True), *((texts.PLAIN, text, False) for text in others)]
    for manner in texts.MANNERS[1:]:
        asked += [(manner, text, True) for text in manner.asked[:ASKS]]
        asked += [(manner, text, False) for text in manner.asked_otherwise]
    calls = []
    for voice, (manner, text, known) in itertools.product([None, *(name for _, name in synth.REPLY_VOICES)], asked):
        for silent in (False, True):
            pcm = np.zeros(FRAMES * FRAME_SAMPLES, np.float32)
            if not silent:
                said, begin = speech.random(rng), int(rng.integers(6, 24)) * FRAME_SAMPLES
                pcm[begin : begin + len(said)] = said[: len(pcm) - begin]
            calls.append(Call(voice, manner, text, known, pcm, int(rng.integers(RECORDINGS))))
    return calls


def in_manner(answer: Answer, manner: texts.Manner) -> bool:
    """Whether something was said, and all of it is of this manner."""
    rest = answer.text
    for line in sorted((*manner.replies, manner.greeting), key=len, reverse=True):
        rest = rest.replace(line, "")
    return bool(answer.text.replace(texts.MMHM, "").strip()) and not rest.replace(texts.MMHM, "").strip()


def judge(calls: list[Call], answers: list[Answer], pitches: dict[str, float]) -> dict:
    """Shares of calls that were as their prompt asked for."""
    def nearest(answer: Answer) -> str | None:
        heard = pitch_hz(answer.pcm)
        return min(pitches, key=lambda voice: abs(np.log(heard / pitches[voice]))) if heard else None

    usual = synth.REPLY_VOICES[0][1]
    voiced = [nearest(answer) == call.voice for call, answer in zip(calls, answers, strict=True) if call.voice]
    unvoiced = [nearest(answer) == usual for call, answer in zip(calls, answers, strict=True) if not call.voice]

    def share(known: bool, plain: bool) -> float:
        return float(np.mean([in_manner(answer, call.manner) for call, answer in zip(calls, answers, strict=True)
                              if call.text and call.known == known and (call.manner is texts.PLAIN) == plain]))

    return {"prompted_calls": len(calls), "voice_follows_prompt": float(np.mean(voiced)),
            "usual_voice_without": float(np.mean(unvoiced)), "manner_follows_text": share(known=True, plain=False),
            "manner_follows_new_text": share(known=False, plain=False),
            "other_texts_change_nothing": share(known=False, plain=True),
            "voice_pitch_hz": {voice: round(pitch) for voice, pitch in pitches.items()}}


def measure(mesh: ThroughMesh, work: Work, pitches: dict[str, float]) -> dict:
    """The figures, through a mesh whose voices are those that `record` wrote."""
    calls = plan(work)
    answers: list[Answer] = []
    for begin in range(0, len(calls), 16):
        answers += mesh.calls([(call.pcm, call.options) for call in calls[begin : begin + 16]])
    return judge(calls, answers, pitches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/talker"))
    parser.add_argument("--work", type=Path, default=Path("build/talker"))
    args = parser.parse_args()
    work = Work(args.work)
    synth.build(work, 0, 4, splits=("heldout_voice",))
    with tempfile.TemporaryDirectory() as voices:
        pitches = record(Path(voices))
        with ThroughMesh(args.checkpoint, voices=Path(voices)) as mesh:
            print(json.dumps(measure(mesh, work, pitches), indent=2))


if __name__ == "__main__":
    main()
