"""One session's writes, without a Redis: the test turns the clock and answers for the scripts."""

from __future__ import annotations

from services.gateway.sessions.history import History
from services.gateway.sessions.journal import FORGET_S, REFUSED_RETRY_S, Listener, Session
from services.gateway.sessions.records import Record
from services.gateway.sessions.sealing import Handle
from tests.gateway.sessions.gateways import CONTEXT, SAMPLING, say


class Alone:
    """A session, its clock, and what its call hears."""

    def __init__(self) -> None:
        self.now_s = 50.0
        self.flushes = 0
        record = Record("a session", "a model", "a codec", SAMPLING, History(8, 8, 1, CONTEXT), age_s=7.0)
        self.session = Session(Handle.new(), record, 1, True, self._flush, lambda: self.now_s)
        self.resumable: list[bool] = []
        self.session.listen(Listener(lambda error: None, self.resumable.append))

    def _flush(self) -> None:
        self.flushes += 1

    def write(self, answer: str = "ok") -> str:
        """One write, and its mode."""
        write = self.session.next_write("a gateway", 60.0)
        self.session.written(write, answer)
        return write.mode


def test_a_refused_write_waits_and_is_told_once() -> None:
    alone = Alone()
    for _ in range(3):
        assert alone.session.due
        alone.session.next_write("a gateway", 60.0)
        alone.session.refused()
        alone.now_s += REFUSED_RETRY_S - 0.1
        assert not alone.session.due
        alone.now_s += 0.2
    assert alone.resumable == [False]
    alone.write()
    assert alone.resumable == [False, True] and alone.session.due


def test_a_journal_is_written_anew_when_it_must() -> None:
    alone = Alone()
    say(alone.session.history, 10)
    assert [alone.write(), alone.write(), alone.write("again"), alone.write(), alone.write()] == [
        "anew", "append", "append", "anew", "append"]
    alone.session.history.rewind(5)
    assert [alone.write(), alone.write()] == ["anew", "append"]
    say(alone.session.history, 2 * alone.session.history.most_kept + 300)  # more than is kept
    assert [alone.write(), alone.write()] == ["anew", "append"]


def test_lag_is_the_age_of_what_is_not_written() -> None:
    alone = Alone()
    alone.write()
    alone.now_s += 3.0
    assert alone.session.lag_s == 0.0
    say(alone.session.history, 1)
    assert alone.session.lag_s == 3.0
    alone.write()
    assert alone.session.lag_s == 0.0


def test_an_age_goes_on_from_where_it_was() -> None:
    alone = Alone()
    alone.now_s += 3.0
    assert alone.session.age_s == 10.0


def test_a_session_that_has_ended_is_forgotten_in_the_end() -> None:
    """Redis may be away for longer than anybody could resume it."""
    alone = Alone()
    alone.session.end("cancelled", keep=True)
    assert alone.flushes == 1 and not alone.session.finished
    alone.now_s += FORGET_S + 0.1
    assert alone.session.finished


def test_what_was_said_leaves_with_a_call_that_ended_well() -> None:
    alone = Alone()
    alone.write()
    alone.session.end("completed", keep=False)
    assert (alone.write(), alone.session.finished) == ("gone", True)
