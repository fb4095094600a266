"""Prompts in training: laid out as the service does it, followed by the rule's talker, judged by pitch and by text."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from moshimesh.lm.v1 import lm_pb2

from services.lm.prompts import read_prompt
from talker import texts
from talker.config import CARD, CODEBOOKS, EPAD, PAD, REPLY_AFTER, SAMPLE_RATE_HZ
from talker.loop import Answer
from talker.measure_prompts import in_manner
from talker.pitch import pitch_hz
from talker.prompts import SHORTEST_VOICE, laid_out, some_of, tokenized
from talker.replies import Book, Line
from talker.train_lm import OWN_CORRUPTION
from talker.train_prompts import (
    BLUR,
    BLURRED_SHARE,
    READING_ALONE,
    READING_FRAMES,
    READING_PAIRS,
    Calls,
    Rows,
    blurred,
)

FRAMES, LINE_FRAMES, TURN = 160, 6, slice(4, 20)
SILENCE = np.arange(40, 40 + CODEBOOKS)
VOICE = np.random.default_rng(0).integers(CARD, size=(CODEBOOKS, 9))


class Letters:
    """A tokenizer of letters, with an unknown one."""

    def encode(self, text: str) -> list[int]:
        return [EPAD if letter == "?" else ord(letter) for letter in text]


def as_served(voice: np.ndarray, text: str) -> np.ndarray:
    """int64 [17, P]: text, own and user codes of the service's prompt."""
    facts = SimpleNamespace(own_codebooks=CODEBOOKS, user_codebooks=CODEBOOKS, cardinality=CARD, context_frames=250,
                            silent_text_tokens=(PAD, EPAD))
    wire = lm_pb2.StepPrompt(text=text, voice_codes=voice.T.flatten().tolist(), silence_codes=SILENCE.tolist())
    prompt = read_prompt(wire, facts, Letters())  # type: ignore[arg-type]
    assert prompt is not None
    return np.concatenate([prompt.tokens.T, prompt.codes.T])


@pytest.mark.parametrize(("voice", "text"), [(VOICE, "be kind?"), (VOICE, ""), (VOICE[:, :0], "be kind?")])
def test_a_prompt_is_laid_out_as_the_service_lays_it_out(voice: np.ndarray, text: str) -> None:
    assert np.array_equal(laid_out(voice, tokenized(Letters(), text), SILENCE), as_served(voice, text))


class OnePrompt:
    """Prompts whose tokens say what they ask for."""

    def draw(self, rng: np.random.Generator, voice: int | None, manner: int | None) -> np.ndarray:
        asks = [token for token in (voice and 300 + voice, manner and 400 + manner) if token]
        return laid_out(VOICE[:, :0], asks, SILENCE)


def book(voice: int) -> Book:
    """Lines whose codes say whose they are, and whose tokens which they are."""
    codes = np.full((CODEBOOKS, LINE_FRAMES), 100 * (voice + 1))
    return Book([Line(text, codes, np.full(LINE_FRAMES, 10 + index), np.zeros(0, np.float32))
                 for index, text in enumerate(texts.LINES)], SILENCE)


def calls(echo: bool) -> Calls:
    """One call with one turn; with echo, it is of the other voice and the brief manner, which say nothing."""
    active = np.zeros((1, FRAMES), bool)
    active[:, TURN] = True
    own = np.repeat(np.array([PAD, *SILENCE], np.int16)[None, :, None], FRAMES, 2)
    return Calls(np.zeros((1, CODEBOOKS, FRAMES), np.int16), active, own, own, np.array([[1, 1]]), np.array([echo]),
                 np.array([False]))


def test_a_row_s_lines_are_those_that_its_prompt_asks_for() -> None:
    rows, seen = Rows(calls(echo=False), [book(0), book(1)], OnePrompt(), np.random.default_rng(0)), set()
    for _ in range(200):
        row, given = rows.row()
        assert row.shape == (1 + 2 * CODEBOOKS + 1 + CODEBOOKS, FRAMES)
        reply = slice(given + TURN.stop + REPLY_AFTER, given + TURN.stop + REPLY_AFTER + LINE_FRAMES)
        asked = set(row[0, :given].tolist()) - {PAD}
        if len(asked & set(range(10, 50))):  # the call goes on from its first line, without a prompt
            assert asked <= {10 + texts.LINES.index(line) for manner in texts.MANNERS
                             for line in (*manner.replies, manner.greeting)} | {EPAD}
            continue
        voice, manner = int(301 in asked), next((at for at in (1, 2) if 400 + at in asked), 0)
        seen.add((voice, manner))
        assert set(row[1, reply].tolist()) == {100 * (voice + 1)}
        assert texts.LINES[int(row[0, reply.start]) - 10] in texts.MANNERS[manner].replies
    assert len(seen) == 6


def test_pairs_that_are_read_differ_in_their_voice_alone_and_are_answered_in_their_manner() -> None:
    rows = Rows(calls(echo=False), [book(0), book(1)], OnePrompt(), np.random.default_rng(0))
    for _ in range(5):
        data, given = (some.numpy() for some in rows.reading())
        assert data.shape == (2 * READING_PAIRS + READING_ALONE, 1 + 2 * CODEBOOKS, READING_FRAMES)
        voices = [0, 1] * READING_PAIRS + [0] * READING_ALONE
        for row, frames, voice in zip(data, given, voices, strict=True):
            reply = frames + TURN.stop + REPLY_AFTER
            manner = next((at for at in (1, 2) if 400 + at in row[0, :frames]), 0)
            assert set(row[1, reply : reply + LINE_FRAMES]) == {100 * (voice + 1)}
            assert texts.LINES[int(row[0, reply]) - 10] in texts.MANNERS[manner].replies
        for pair in range(READING_PAIRS):
            one, other = (data[2 * pair + at][:, given[2 * pair + at] :][0, : FRAMES // 2] for at in (0, 1))
            assert np.array_equal(one, other)


def test_a_blurred_past_keeps_its_text_and_its_prompt_s_codes() -> None:
    torch.manual_seed(0)
    own = torch.full((400, 1 + CODEBOOKS, 50), 7)
    past = blurred(own, torch.full((400,), 20))
    assert (past[:, 0] == 7).all()
    changed = (past != own)[:, 1:].float()
    assert float(changed[:, :, :20].mean()) == pytest.approx(OWN_CORRUPTION, abs=0.005)
    assert float((changed[:, :, 20:].mean((1, 2)) > BLUR / 2).float().mean()) == pytest.approx(BLURRED_SHARE, abs=0.1)


def test_a_voice_is_a_piece_of_one_of_its_recordings() -> None:
    recording, lengths = np.arange(60)[None].repeat(CODEBOOKS, 0), set()
    for seed in range(100):
        piece = some_of(np.random.default_rng(seed), recording)
        assert (np.diff(piece[0]) == 1).all()
        lengths.add(piece.shape[1])
    assert min(lengths) >= SHORTEST_VOICE and max(lengths) <= 60 and len(lengths) > 10
    assert some_of(np.random.default_rng(0), VOICE).shape == VOICE.shape  # shorter ones stay whole


def test_a_call_with_echo_keeps_the_voice_that_echoes() -> None:
    row, given = Rows(calls(echo=True), [book(0), book(1)], OnePrompt(), np.random.default_rng(0)).row()
    assert {301, 401} <= set(row[0, :given].tolist())
    assert set(row[0, given:].tolist()) == {PAD}


def test_pitch_is_that_of_the_voice_and_noise_has_none() -> None:
    seconds = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    for hertz in (90, 130, 170, 240):
        harmonics = sum(np.sin(2 * np.pi * hertz * k * seconds) / k for k in range(1, 9))
        assert pitch_hz(harmonics * 0.2) == pytest.approx(hertz, rel=0.02)
    assert pitch_hz(np.random.default_rng(0).normal(size=SAMPLE_RATE_HZ) * 0.2) is None
    assert pitch_hz(np.zeros(SAMPLE_RATE_HZ)) is None


@pytest.mark.parametrize(("said", "manner", "follows"), [
    (" Hello. Go on. I see.", texts.BRIEF, True), (" mm-hm Go on.", texts.BRIEF, True), ("", texts.BRIEF, False),
    (" mm-hm", texts.BRIEF, False), (" I understand. Please continue.", texts.BRIEF, False),
    (" Go on. I am happy to help you.", texts.BRIEF, False), (" Go", texts.BRIEF, False),
    (" That is wonderful. Please go on.", texts.CHEERFUL, True), (" Good morning, how can I help you", texts.CHEERFUL,
                                                                  False)])
def test_a_manner_is_followed_when_nothing_else_is_said(said: str, manner: texts.Manner, follows: bool) -> None:
    assert in_manner(Answer(np.zeros(0, np.float32), said, []), manner) is follows
