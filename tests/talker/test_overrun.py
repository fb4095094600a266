"""Being talked over: the rule's stop, the line that would have gone on, and pasts that overrun the stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from talker import train_lm
from talker.config import CODEBOOKS, PAD, REPLY_AFTER, STOP_AFTER
from talker.dialogues import Talker
from talker.replies import Book, Line
from talker.texts import LINES

LINE_FRAMES, FRAMES = 20, 60
TURN, INTERRUPTION = range(2, 10), range(24, 40)
STOP = INTERRUPTION.start + STOP_AFTER
BEGIN = TURN.stop + REPLY_AFTER


@pytest.fixture
def talker() -> Talker:
    """It answers a turn and is talked over in the middle of the answer."""
    codes = np.arange(1, LINE_FRAMES + 1) + np.zeros((CODEBOOKS, 1), np.int64)
    line = Line("any", codes, np.full(LINE_FRAMES, 100), np.zeros(0, np.float32))
    talker = Talker(Book([line] * len(LINES), np.zeros(CODEBOOKS, np.int64)), np.random.default_rng(0), greets=False)
    for t in range(FRAMES):
        talker.step(t, t in TURN or t in INTERRUPTION)
    return talker


def test_the_rule_stops_and_onward_does_not(talker: Talker) -> None:
    own, onward = talker.own(), talker.onward()
    assert np.flatnonzero(own[1, : INTERRUPTION.stop]).tolist() == list(range(BEGIN, STOP))
    assert (own[0, STOP : INTERRUPTION.stop] == PAD).all()
    assert onward[1, BEGIN : BEGIN + LINE_FRAMES].tolist() == list(range(1, LINE_FRAMES + 1))
    elsewhere = np.r_[0:STOP, BEGIN + LINE_FRAMES : FRAMES]
    assert (own[:, elsewhere] == onward[:, elsewhere]).all()


def test_onward_ends_where_the_next_line_begins(talker: Talker) -> None:
    talker.said.append((STOP + 3, STOP + 10, 0))
    assert (talker.onward()[:, STOP + 3 :] == talker.own()[:, STOP + 3 :]).all()


def test_pasts_overrun_the_stop_by_up_to_the_longest(talker: Talker) -> None:
    own, onward = (torch.from_numpy(x)[None].repeat(300, 1, 1) for x in (talker.own(), talker.onward()))
    torch.manual_seed(0)
    past = train_lm.overrun(own, onward)
    differs = (past != own)[:, 1]
    late = differs.sum(1)
    assert sorted(set(late.tolist())) == list(range(min(train_lm.LONGEST_OVERRUN, BEGIN + LINE_FRAMES - STOP) + 1))
    assert all(row[STOP : STOP + n].all() for row, n in zip(differs, late.tolist(), strict=True))
    assert abs(float((late > 0).float().mean()) - train_lm.OVERRUN_SHARE) < 0.1
    text_late = (past != own)[:, 0].sum(1)
    assert 0 < int((text_late != late).sum()) < 150  # mostly together, sometimes only one of the two
