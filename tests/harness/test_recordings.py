"""Sound files as people have them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from harness.load import read_speech
from harness.recordings import UnreadableRecording, read_recording

SECONDS = 0.5


def tone(rate: int, channels: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A tone of 440 Hz, float32 [samples, channels]."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(SECONDS * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def wav(path: Path, **options: Any) -> Path:
    settings = {"rate": 24_000, "channels": 1, "format": "WAV", "subtype": "PCM_16"} | options
    soundfile.write(path, tone(settings["rate"], settings["channels"]), settings["rate"], format=settings["format"],
                    subtype=settings["subtype"])
    return path


@pytest.mark.parametrize("options", [
    {}, {"format": "WAVEX"}, {"format": "WAVEX", "channels": 2}, {"subtype": "FLOAT"}, {"subtype": "ULAW"},
    {"subtype": "PCM_24"}, {"rate": 8000}, {"rate": 44_100, "channels": 2}, {"format": "FLAC"},
    {"format": "OGG", "subtype": "VORBIS", "rate": 48_000}], ids=str)
def test_whatever_holds_speech_is_read(options: dict[str, Any], tmp_path: Path) -> None:
    samples = np.frombuffer(read_recording(wav(tmp_path / "a b.wav", **options)), dtype="<i2")
    assert len(samples) == pytest.approx(SECONDS * 24_000, abs=2)
    wanted = tone(24_000)[:len(samples), 0]
    assert np.corrcoef(samples[200:-200], wanted[200:len(samples) - 200])[0, 1] > 0.98
    assert np.abs(samples).max() == pytest.approx(16_384, rel=0.15)


def test_a_file_that_is_cut_at_an_odd_byte_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = wav(tmp_path / "whole.wav")
    data = whole.read_bytes()
    cut = tmp_path / "cut.wav"
    cut.write_bytes(data[:-1001])
    assert read_recording(cut) == read_recording(whole)[:len(read_recording(cut))]
    assert len(read_recording(cut)) >= 23_000 - 4


def broken_rate(path: Path) -> None:
    wav(path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 24, 0)
    path.write_bytes(data)


def not_numbers(path: Path) -> None:
    soundfile.write(path, np.full((24_000, 1), np.nan, np.float32), 24_000, subtype="FLOAT")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "rate 0": (broken_rate, "can't be read"), "nothing": (lambda path: path.write_bytes(b""), "can't be read"),
    "text": (lambda path: path.write_text("speech\n" * 100), "can't be read"),
    "no such file": (lambda path: None, "there is no such file"), "a folder": (lambda path: path.mkdir(), "folder"),
    "not numbers": (not_numbers, "not numbers"),
    "too short": (lambda path: soundfile.write(path, tone(24_000)[:2000], 24_000), r"0\.08 s of sound"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_can_not_be_read_is_named_with_the_reason(name: str, tmp_path: Path) -> None:
    make, message = BROKEN[name]
    path = tmp_path / "broken.wav"
    make(path)
    with pytest.raises(UnreadableRecording, match=message) as caught:
        read_recording(path)
    assert str(caught.value).count("broken.wav") == 1


def test_one_broken_file_in_a_folder_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav(tmp_path / "good.wav")
    (tmp_path / "bad.wav").write_text("no sound")
    assert len(read_speech(tmp_path)) == 1
    assert "bad.wav" in capsys.readouterr().err


def test_a_folder_without_speech_ends_the_program_with_a_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"load: no .*wav in the folder"):
        read_speech(tmp_path)
    (tmp_path / "bad.wav").write_text("no sound")
    with pytest.raises(SystemExit, match=r"load: .*bad\.wav can't be read"):
        read_speech(tmp_path)
