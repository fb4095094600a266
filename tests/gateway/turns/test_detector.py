"""Scripted tokens: every event comes at the frame that docs/protocol.md says."""

from __future__ import annotations

from services.gateway.turns.detector import Detector
from services.gateway.turns.events import EventKind
from services.gateway.turns.table import SpeechTable

TABLE = SpeechTable(bytes([0x80, 0x7F]), 2)  # one codebook: entry 0 is silence, entry 1 speech
PAD, WORD = 3, 100


def told(user: str, model: str) -> list[tuple[str, int, int]]:
    """Events as (kind, frame at which it began, frame at which it was certain). `#` is a frame of speech."""
    detector = Detector(TABLE, (PAD, 0))
    return [(one.kind.value, one.sequence, sequence)
            for sequence, (heard, said) in enumerate(zip(user, model, strict=True))
            for one in detector.step(sequence, [heard == "#"], [PAD, said == "#"])]


def test_speech_of_the_user_starts_with_two_frames_and_stops_with_five() -> None:
    user = "..#..##..##.....##"
    assert told(user, "." * len(user)) == [
        (EventKind.USER_SPEECH_STARTED.value, 5, 6), (EventKind.USER_SPEECH_STOPPED.value, 11, 15),
        (EventKind.USER_SPEECH_STARTED.value, 16, 17)]
