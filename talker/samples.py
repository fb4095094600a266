"""`python -m talker.samples`: the speech WAVs in `samples/`, all held-out voices reading held-out sentences, and the
voices in `samples/voices` that the bundled checkpoint can speak in."""

from __future__ import annotations

import argparse
import wave
from pathlib import Path

import numpy as np

from talker import texts
from talker.config import SAMPLE_RATE_HZ
from talker.synth import REPLY_VOICES, speak

RMS, FEMALE, BRITISH = ("flite", "rms"), ("espeak", "en-us+f4"), ("espeak", "en-gb-x-rp+m7")
Part = tuple[float, tuple[str, str] | None, int]  # (seconds of silence before, voice, index in texts.HELDOUT)

# name -> parts, and the seconds of silence at the end
SAMPLES: dict[str, tuple[list[Part], float, str]] = {
    "demo": ([(0.8, RMS, 31), (3.4, RMS, 23)], 2.8, "two turns with time for two replies"),
    "question-1": ([(0.6, RMS, 0)], 2.8, "one turn and time for the reply"),
    "question-2": ([(0.6, FEMALE, 17)], 2.8, "one turn and time for the reply"),
    "question-3": ([(0.6, BRITISH, 37)], 2.8, "one turn and time for the reply"),
    "interrupt": ([(0.6, RMS, 7), (1.0, RMS, 18)], 2.8, "the second sentence talks over the reply to the first"),
    "long-turn": ([(0.5, RMS, 5), (0.25, RMS, 9), (0.25, RMS, 38)], 2.8, "three sentences in one turn"),
}
VOICE_SAYS = 1  # the index in texts.HELDOUT of what each of samples/voices says


def write_wav(path: Path, pcm: np.ndarray) -> None:
    """24 kHz mono 16-bit."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE_HZ)
        out.writeframes((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())


def read_wav(path: Path) -> np.ndarray:
    """float32 [samples] of a 24 kHz mono 16-bit file."""
    with wave.open(str(path)) as f:
        if (f.getframerate(), f.getnchannels(), f.getsampwidth()) != (SAMPLE_RATE_HZ, 1, 2):
            raise ValueError(f"{path}: expected 24 kHz mono 16-bit")
        return np.frombuffer(f.readframes(f.getnframes()), "<i2").astype(np.float32) / 32768


def build(out: Path) -> None:
    """Write every sample and the README that says what is in it."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (parts, tail, what) in SAMPLES.items():
        pieces, said = [], []
        for silence, (engine, voice), index in parts:
            pieces += [np.zeros(int(silence * SAMPLE_RATE_HZ), np.float32), speak(texts.HELDOUT[index], engine, voice)]
            said.append(texts.HELDOUT[index])
        pcm = np.concatenate([*pieces, np.zeros(int(tail * SAMPLE_RATE_HZ), np.float32)])
        write_wav(out / f"{name}.wav", pcm)
        length_s = len(pcm) / SAMPLE_RATE_HZ
        rows.append(f"| `{name}.wav` | {length_s:.1f} s | {engine} {voice} | {' / '.join(said)} | {what} |")
    names = [voice for _, voice in REPLY_VOICES]
    (out / "voices").mkdir(exist_ok=True)
    for engine, voice in REPLY_VOICES:
        write_wav(out / "voices" / f"{voice}.wav", speak(texts.HELDOUT[VOICE_SAYS], engine, voice))
    (out / "README.md").write_text(
        "# Speech for demos, tests and load\n\n"
        "24 kHz, mono, 16-bit. The bundled checkpoint never saw the table's voices and sentences in training. Made\n"
        "with flite and espeak-ng by `python -m talker.samples`; the sentences were written for this project, and the\n"
        "recordings are dedicated to the public domain (CC0).\n\n"
        f"`voices/` is what `make run` offers as voices, {' and '.join(names)} of flite: the bundled checkpoint\n"
        f"speaks in each of them, and in {names[0]} when none is asked for.\n\n"
        "| file | length | voice | text | what for |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("samples"))
    build(parser.parse_args().out)
