"""A text as Moshi's text stream has it: one token a frame, each word when it is spoken, padding in between.

In what Moshi was trained on, a word's tokens follow each other from the frame at which the word begins, padding fills
the time until the next word, and the frame before a word is "end of padding" (Défossez et al., Moshi: a speech-text
foundation model for real-time dialogue, 2024, section 3.4.4). There the times come from recordings; here from the
number of characters, at the pace of unhurried English. The sound follows the text, so that is how fast it speaks.
"""

from __future__ import annotations

from typing import Protocol

CHARACTERS_PER_FRAME = 1.1  # 14 a second, with spaces, of frames of 80 ms
PAUSES_FRAMES = dict.fromkeys(".!?", 5) | dict.fromkeys(",;:", 2)


class Tokenizer(Protocol):
    """What the text tokenizer must do: SentencePiece's processor does."""

    def encode(self, text: str) -> list[int]:
        """The text's tokens."""

    def id_to_piece(self, token: int) -> str:
        """The piece, with U+2581 for a space."""


def paced(text: str, tokenizer: Tokenizer, padding: int, end_of_padding: int) -> list[int]:
    """The text token of each frame; empty when the tokenizer has nothing for any of it."""
    words: list[list[int]] = []
    for token in tokenizer.encode(text):
        if token in (padding, end_of_padding):  # what it makes of characters that it does not know
            continue
        if not words or tokenizer.id_to_piece(token).startswith("▁"):
            words.append([])
        words[-1].append(token)
    frames: list[int] = []
    for word in words:
        spelt = "".join(map(tokenizer.id_to_piece, word))
        lasts = round(len(spelt) / CHARACTERS_PER_FRAME) + PAUSES_FRAMES.get(spelt[-1:], 0)
        frames += [end_of_padding, *word, *[padding] * (lasts - 1 - len(word))]
    return frames
