"""The pace of a text that the model is to say."""

from __future__ import annotations

import pytest

from services.lm.saying import paced

PAD, END = 3, 0


class Letters:
    """A token for each letter; a space belongs to the next one. It has none for digits."""

    def encode(self, text: str) -> list[int]:
        words = text.replace(" ", " ▁").split()
        return [self._token(("▁" if part == 0 else "") + letter) for number, word in enumerate(words)
                for part, letter in enumerate(word if number == 0 else word[1:])]

    def id_to_piece(self, token: int) -> str:
        return ("▁" if token >= 1000 else "") + chr(token % 1000)

    @staticmethod
    def _token(piece: str) -> int:
        return 0 if piece[-1].isdigit() else ord(piece[-1]) + 1000 * piece.startswith("▁")


def test_each_word_begins_behind_an_end_of_padding_and_lasts_as_long_as_it_is() -> None:
    frames = paced("hi there", Letters(), PAD, END)
    assert [chr(token % 1000) if token > 3 else token for token in frames] == [
        END, "h", "i", END, "t", "h", "e", "r", "e"]


def test_a_mark_makes_a_pause() -> None:
    frames = paced("well, yes.", Letters(), PAD, END)
    assert [chr(token % 1000) if token > 3 else token for token in frames] == [
        END, "w", "e", "l", "l", ",", PAD, END, "y", "e", "s", ".", PAD, PAD, PAD, PAD, PAD]


@pytest.mark.parametrize("text", ["", "12 34"])
def test_a_text_that_the_tokenizer_does_not_know_has_no_frames(text: str) -> None:
    assert paced(text, Letters(), PAD, END) == []


def test_characters_that_the_tokenizer_does_not_know_are_left_out() -> None:
    assert [token for token in paced("a1b", Letters(), PAD, END) if token not in (PAD, END)] == [
        1000 + ord("a"), ord("b")]
