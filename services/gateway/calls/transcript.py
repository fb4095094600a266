"""What the model has said, and how much of it the caller's loudspeaker has played."""

from __future__ import annotations

from collections import deque

from services.gateway.calls.events import Heard

# Pieces of text that wait to be played: minutes of speech, far more than a loudspeaker's buffer. A caller that never
# says what it has played is taken to have played the older ones.
KEPT_PIECES = 1024


class Transcript:
    """The text of one call's answers, as long as it is not known whether it was heard."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, str]] = deque(maxlen=KEPT_PIECES)  # number of the frame, and its text
        self._sent = self._played = -1  # the last frame that was sent, and that was played
        self._cut = 0  # what comes before this frame is dropped once the caller has said how far it had come
        self._dropped = range(0)  # frames that will never be played; the last ones of them may still be on their way

    def said(self, sequence: int, text: str) -> None:
        """An answer was sent."""
        self._sent = sequence
        if text:
            self._pieces.append((sequence, text))

    @property
    def next_answer(self) -> int:
        """Number after the last answer that was sent."""
        return self._sent + 1

    def cut(self, sequence: int) -> None:
        """The caller drops what comes before the answer of this number and is not played yet."""
        self._cut = max(self._cut, sequence)

    def played(self, sequence: int) -> Heard | None:
        """The loudspeaker has played the answers up to this one, or the last one that was sent; None before the first.

        A word was heard when the frame with its last letters was played.
        """
        if self._sent < 0:
            return None
        self._played = max(min(sequence, self._sent), self._played)
        unheard = ""
        while self._pieces and self._pieces[0][0] in self._dropped:
            unheard += self._pieces.popleft()[1]
        texts = [text for _, text in self._pieces]
        heard = sum(number <= self._played for number, _ in self._pieces)
        while 0 < heard < len(texts) and not texts[heard].startswith(" "):  # amid a word
            heard -= 1
        if self._cut:
            self._dropped, self._cut = range(self._played + 1, self._cut), 0
        gone = max(heard, sum(number < self._dropped.stop for number, _ in self._pieces))
        for _ in range(gone):
            self._pieces.popleft()
        return Heard(self._played, "".join(texts[:heard]), unheard + "".join(texts[heard:]))
