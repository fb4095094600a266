"""What was heard, up to a word, and what was only said."""

from __future__ import annotations

import pytest

from services.gateway.calls.events import Heard
from services.gateway.calls.transcript import KEPT_PIECES, Transcript


def said(*texts: str, first: int = 1) -> Transcript:
    """A text with each answer, the first of which has this number."""
    transcript = Transcript()
    for sequence, text in enumerate(texts, first):
        transcript.said(sequence, text)
    return transcript


@pytest.mark.parametrize(("played", "text", "unheard"), [
    (0, "", " Good evening"), (1, "", " Good evening"), (2, " Good", " evening"), (3, " Good", " evening"),
    (4, " Good", " evening"), (5, " Good evening", ""), (10**12, " Good evening", "")])
def test_a_word_is_heard_with_its_last_letters(played: int, text: str, unheard: str) -> None:
    transcript = said(" Go", "od", "", " even", "ing")
    assert transcript.played(played) == Heard(min(played, 5), text, unheard)


def test_each_word_is_told_once_and_the_position_never_goes_back() -> None:
    transcript = said(" one", " two", " three")
    assert transcript.played(2) == Heard(2, " one two", " three")
    assert transcript.played(1) == Heard(2, "", " three")
    transcript.said(4, " four")
    assert transcript.played(4) == Heard(4, " three four", "")


def test_nothing_is_heard_before_the_first_answer() -> None:
    assert Transcript().played(3) is None


def test_what_an_interruption_cuts_off_is_never_heard() -> None:
    transcript = said(" one", " two", " thr")
    transcript.cut(6)
    assert transcript.played(1) == Heard(1, " one", " two thr")
    transcript.said(4, "ee")  # it was on its way
    transcript.said(5, "")
    transcript.said(6, " so")
    assert transcript.played(6) == Heard(6, " so", "ee")


def test_a_word_amid_which_it_was_cut_off_was_only_said() -> None:
    transcript = said(" one", " tw", "o")
    transcript.cut(4)
    assert transcript.played(2) == Heard(2, " one", " two")
    transcript.said(4, " so")
    assert transcript.played(4) == Heard(4, " so", "")


def test_who_never_says_what_was_played_costs_little() -> None:
    transcript = said(*[" word"] * (2 * KEPT_PIECES))
    assert transcript.played(2 * KEPT_PIECES) == Heard(2 * KEPT_PIECES, " word" * KEPT_PIECES, "")
