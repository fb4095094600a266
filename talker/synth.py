"""Speech for training: espeak-ng and flite read the texts, sox brings them to 24 kHz mono.

Held out by sentence (texts.HELDOUT) and by voice (HELDOUT_VOICES): no codec or language model training ever sees
either.
"""

from __future__ import annotations

import json
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from talker import texts
from talker.config import SAMPLE_RATE_HZ, Work

# (engine, voice, weight). flite's slt, awb and kal16 are recorded people; espeak-ng's voices are formant synthesis.
TRAIN_VOICES = [
    ("flite", "slt", 3.0), ("flite", "awb", 2.2), ("flite", "kal16", 1.4), ("espeak", "en-us", 0.7),
    ("espeak", "en-gb+f2", 0.7), ("espeak", "en-us+f3", 0.5), ("espeak", "en-gb-scotland+m3", 0.5),
    ("espeak", "en-us+m1", 0.5), ("espeak", "en-gb-x-rp+Andrea", 0.5), ("espeak", "en-us+Steph", 0.4),
    ("espeak", "en-us+klatt2", 0.3),
]
HELDOUT_VOICES = [("flite", "rms"), ("espeak", "en-us+f4"), ("espeak", "en-gb-x-rp+m7")]
REPLY_VOICES = [("flite", "slt"), ("flite", "awb")]  # the first without a voice prompt, each after one of its own
PROMPTS = 40  # recordings of each that a voice prompt may be
LEVEL_RMS = 0.08  # active speech level, about -22 dBFS


@dataclass(frozen=True)
class Clip:
    """One utterance inside a packed int16 array: samples [start, start + length)."""

    text: str
    voice: str
    start: int
    length: int


def speak(text: str, engine: str, voice: str, stretch: float = 1.0, speed: float = 1.0, pitch: int = 50) -> np.ndarray:
    """Speech as float32 [samples] at 24 kHz, silence trimmed, at LEVEL_RMS; `speed` also moves pitch and formants."""
    if engine == "flite":
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.3f}", "-t", text,
                   "-o", "/dev/stdout"]
    else:
        rate = str(int(160 / stretch))
        command = ["espeak-ng", "-v", voice, "-s", rate, "-p", str(pitch), "--stdout", text]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    sox = ["sox", "-R", "-V1", "-t", "wav", "--ignore-length", "-", "-t", "raw", "-e", "floating-point", "-b", "32",
           "-c", "1", "-r", str(SAMPLE_RATE_HZ), "-"]
    if speed != 1.0:
        sox += ["speed", f"{speed:.3f}"]
    raw = subprocess.run(sox, input=wav, check=True, capture_output=True).stdout
    return _level(np.frombuffer(raw, dtype=np.float32).copy())


def _level(pcm: np.ndarray) -> np.ndarray:
    """Trim both ends at 1.5 % of the peak and scale so that the active part has LEVEL_RMS."""
    loud = np.flatnonzero(np.abs(pcm) > 0.015 * np.abs(pcm).max())
    pcm = pcm[loud[0] : loud[-1] + 1]
    power = np.square(pcm[: len(pcm) // 240 * 240]).reshape(-1, 240).mean(1)
    active = power > 0.01 * power.max()
    pcm = pcm * (LEVEL_RMS / np.sqrt(power[active].mean()))
    fade = np.linspace(0.0, 1.0, 120, dtype=np.float32)
    pcm[:120] *= fade
    pcm[-120:] *= fade[::-1]
    return np.clip(pcm, -0.99, 0.99).astype(np.float32)


def _plan_training(minutes: float, seed: int) -> list[tuple[str, dict]]:
    rng = random.Random(seed)
    weights = [w for *_, w in TRAIN_VOICES]
    jobs = []
    for text in texts.training_sentences(int(minutes * 60 / 3.3), seed):
        engine, voice, _ = rng.choices(TRAIN_VOICES, weights)[0]
        perturb = rng.random() < 0.6
        jobs.append((text, {
            "engine": engine, "voice": voice, "stretch": rng.uniform(0.9, 1.15),
            "speed": rng.uniform(0.87, 1.15) if engine == "flite" and perturb else 1.0, "pitch": rng.randint(30, 70),
        }))
    return jobs


def _plan_replies() -> list[tuple[str, dict]]:
    return [(text, {"engine": engine, "voice": voice, "stretch": 0.9 if text in texts.SPOKEN else 1.1})
            for engine, voice in REPLY_VOICES for text in texts.LINES]


def _plan_prompts(seed: int) -> list[tuple[str, dict]]:
    rng, sentences = random.Random(seed), texts.training_sentences(len(REPLY_VOICES) * PROMPTS, seed)
    return [(text, {"engine": engine, "voice": voice, "stretch": rng.uniform(0.9, 1.1),
                    "speed": rng.uniform(0.96, 1.04)})
            for i, (engine, voice) in enumerate(REPLY_VOICES) for text in sentences[i * PROMPTS : (i + 1) * PROMPTS]]


def plans(minutes: float, seed: int) -> dict[str, list[tuple[str, dict]]]:
    """The jobs of every split: text and the arguments of `speak`."""
    known = [(e, v) for e, v, _ in TRAIN_VOICES]
    rng = random.Random(seed + 1)
    return {
        "train": _plan_training(minutes, seed),
        "replies": _plan_replies(),
        "prompts": _plan_prompts(seed + 2),
        # held-out sentences in known voices, and held-out sentences in held-out voices
        "heldout": [(t, dict(zip(("engine", "voice"), rng.choice(known[:8]), strict=True))) for t in texts.HELDOUT],
        "heldout_voice": [(t, dict(zip(("engine", "voice"), HELDOUT_VOICES[i % 3], strict=True)))
                          for i, t in enumerate(texts.HELDOUT)],
    }


SPLITS = ("train", "replies", "prompts", "heldout", "heldout_voice")


def build(work: Work, minutes: float, seed: int, workers: int = 2, splits: tuple[str, ...] = SPLITS) -> None:
    """Write `speech/<split>.npy` (int16, packed) and `speech/<split>.json` (the clips) for every split."""
    for split, jobs in plans(minutes, seed).items():
        target = work.path(f"speech/{split}.npy")
        if target.exists() or split not in splits:
            continue
        with ThreadPoolExecutor(workers) as pool:
            made = pool.map(lambda job: speak(texts.SPOKEN.get(job[0], job[0]), **job[1]), jobs)
            pcms = list(track(made, total=len(jobs), description=f"speech {split}"))
        clips, at = [], 0
        for (text, how), pcm in zip(jobs, pcms, strict=True):
            clips.append(Clip(text, f"{how['engine']}:{how['voice']}", at, len(pcm)))
            at += len(pcm)
        work.path(f"speech/{split}.json").write_text(json.dumps([asdict(c) for c in clips], indent=0))
        np.save(target, (np.concatenate(pcms) * 32767).astype(np.int16))


def load(work: Work, split: str) -> tuple[np.ndarray, list[Clip]]:
    """The packed int16 samples (memory-mapped) and the clips of a split."""
    pcm = np.load(work.path(f"speech/{split}.npy"), mmap_mode="r")
    return pcm, [Clip(**c) for c in json.loads(Path(work.path(f"speech/{split}.json")).read_text())]


def clip_pcm(pcm: np.ndarray, clip: Clip) -> np.ndarray:
    """float32 [samples] of one clip."""
    return pcm[clip.start : clip.start + clip.length].astype(np.float32) / 32767
