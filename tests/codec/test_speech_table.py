"""The table of what codes are worth as speech: read, refused, learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.codec.listening import LEVEL, SPEECH_RMS, bundled_clips, recording, rms
from services.codec.noises import KINDS
from services.codec.speech_learning import learn
from services.codec.speech_table import FILE, BadSpeechTable, read_speech_table
from services.gateway.turns.table import UNITS, SpeechTable
from services.mesh.checkpoint import load_mimi, resolve

CODEBOOKS, ENTRIES = 8, 1024


def test_weights_without_a_table_have_none(tmp_path: Path) -> None:
    assert read_speech_table(tmp_path, CODEBOOKS, ENTRIES) is None


def test_a_model_with_fewer_codebooks_takes_the_first_of_the_table(tmp_path: Path) -> None:
    table = np.arange(CODEBOOKS * 4).reshape(CODEBOOKS, 4).astype(np.int8)
    np.save(tmp_path / FILE, table)
    read = read_speech_table(tmp_path, 3, 4)
    assert read is not None and (read == table[:3]).all()


@pytest.mark.parametrize("table", [np.zeros((8, 1023), np.int8), np.zeros((7, 1024), np.int8),
                                   np.zeros((8, 1024), np.float32), np.zeros(8 * 1024, np.int8)])
def test_a_table_of_another_shape_is_refused_with_what_to_do(tmp_path: Path, table: np.ndarray) -> None:
    np.save(tmp_path / FILE, table)
    with pytest.raises(BadSpeechTable, match=r"must be int8 \[8, 1024\].*learn it again"):
        read_speech_table(tmp_path, CODEBOOKS, ENTRIES)


@pytest.mark.parametrize("content", [b"", b"not a table", b"\x93NUMPY"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(BadSpeechTable, match="can't be read"):
        read_speech_table(tmp_path, CODEBOOKS, ENTRIES)


def test_the_bundled_checkpoint_has_one(checkpoint: str) -> None:
    table = read_speech_table(Path(checkpoint), CODEBOOKS, ENTRIES)
    assert table is not None and table.std() > UNITS


def test_what_is_learnt_tells_speech_in_frames_that_were_not_learnt_from(checkpoint: str) -> None:
    rng = np.random.default_rng(3)
    speech = np.repeat(rng.random((40, 20)) < 0.5, 5, axis=1)  # runs of five frames
    codes = rng.integers(50, size=(40, 100, CODEBOOKS))
    codes[..., 0] += speech * 50
    table = learn(load_mimi(resolve(checkpoint)), codes[:20], speech[:20], np.ones((20, 100), bool))
    odds = SpeechTable(table.tobytes(), ENTRIES)
    right = [(odds.log_odds(frame) > 0) == label
             for frame, label in zip(codes[20:].reshape(-1, CODEBOOKS).tolist(), speech[20:].flatten(), strict=True)]
    assert np.mean(right) > 0.85


def test_recordings_are_labelled_by_the_clean_speech_in_them() -> None:
    clips = bundled_clips()
    assert len(clips) >= 10
    for clip in clips:
        assert 24_000 < len(clip) < 96_000 and 0.3 * LEVEL < np.sqrt(np.mean(clip**2)) < 1.5 * LEVEL
    rng = np.random.default_rng(1)
    heard = [recording(lambda rng: clips[int(rng.integers(len(clips)))], rng, 50) for _ in range(30)]
    assert 0.1 < np.mean([one.speech.mean() for one in heard]) < 0.6
    assert sum(not one.speech.any() for one in heard) >= 6  # noise alone
    assert all(np.abs(one.pcm).max() <= 1 for one in heard)
    assert rms(clips[0][:1920 * 10].astype(np.float64)).max() > SPEECH_RMS


@pytest.mark.parametrize("noise", sorted(set(KINDS), key=lambda kind: kind.__name__))
def test_noise_has_its_level(noise: object) -> None:
    made = noise(np.random.default_rng(2), 48_000)  # type: ignore[operator]
    assert len(made) == 48_000 and np.isfinite(made).all() and abs(np.sqrt(np.mean(made**2)) - 1) < 0.05
