"""Scripted tokens: every event comes at the frame that docs/protocol.md says."""

from __future__ import annotations

from services.gateway.turns.detector import Detector
from services.gateway.turns.events import EventKind, Happening
from services.gateway.turns.table import SpeechTable

TABLE = SpeechTable(bytes([0x80, 0x7F]), 2)  # one codebook: entry 0 is silence, entry 1 speech
PAD, WORD = 3, 100
USER_STARTED, USER_STOPPED = EventKind.USER_SPEECH_STARTED, EventKind.USER_SPEECH_STOPPED
MODEL_STARTED, MODEL_STOPPED = EventKind.MODEL_SPEECH_STARTED, EventKind.MODEL_SPEECH_STOPPED
BEGUN, ENDED = EventKind.OVERLAP_BEGUN, EventKind.OVERLAP_ENDED


def told(user: str, model: str, numbers: list[int] | None = None) -> list[tuple[EventKind, int, int]]:
    """Events as (kind, frame at which it began, frame at which it was certain). `#` is a frame of speech, `_` one with
    text and no sound; the caller's numbers of the frames are 0, 1, 2.. unless they are given.
    """
    detector = Detector(TABLE, (PAD, 0), 1)
    return [(one.kind, one.sequence, sequence)
            for sequence, heard, said in zip(numbers or range(len(user)), user, model, strict=True)
            for one in detector.step(sequence, [heard == "#"], [WORD if said == "_" else PAD, said == "#"])]


def alone(user: str) -> list[tuple[EventKind, int, int]]:
    return told(user, "." * len(user))


def test_the_user_s_speech_starts_at_the_first_of_two_frames_and_is_certain_one_later() -> None:
    assert alone("....####") == [(USER_STARTED, 4, 6)]


def test_one_frame_of_the_user_s_speech_is_a_click() -> None:
    assert alone("....#....#...") == []


def test_the_user_s_speech_stops_at_the_first_of_five_quiet_frames_and_is_certain_one_after_them() -> None:
    assert alone("..#####.......") == [(USER_STARTED, 2, 4), (USER_STOPPED, 7, 12)]


def test_a_pause_of_four_frames_between_two_words_ends_nothing() -> None:
    assert alone("..###....###....###") == [(USER_STARTED, 2, 4)]


def test_the_model_s_speech_starts_with_two_frames_and_stops_with_five() -> None:
    assert told("." * 18, "..#.####....##....") == [(MODEL_STARTED, 4, 5)]
    assert told("." * 16, "...####.........") == [(MODEL_STARTED, 3, 4), (MODEL_STOPPED, 7, 11)]


def test_the_model_s_text_outweighs_a_quiet_frame_of_its_sound_only_if_that_is_not_silence() -> None:
    doubtful = SpeechTable(bytes([0xE0, 0x7F]), 2)  # entry 0: -2
    detector = Detector(doubtful, (PAD, 0), 1)
    assert [one for at in range(4) for one in detector.step(at, [0], [WORD, 0])] == [Happening(MODEL_STARTED, 0)]
    assert told("." * 10, "__________") == []


def test_an_interrupted_model_has_yielded_with_two_quiet_frames() -> None:
    assert told("......###########",
                "..#######........") == [
        (MODEL_STARTED, 2, 3), (USER_STARTED, 6, 8), (BEGUN, 6, 8), (MODEL_STOPPED, 9, 10),
        (EventKind.INTERRUPTED, 9, 10), (ENDED, 9, 10)]


def test_a_model_that_yields_before_the_user_is_certain_is_interrupted_at_that_frame() -> None:
    assert told(".....###########",
                "..####..........")[1:] == [
        (USER_STARTED, 5, 7), (BEGUN, 5, 7), (MODEL_STOPPED, 6, 7), (EventKind.INTERRUPTED, 6, 7), (ENDED, 6, 7)]


def test_a_model_that_has_ended_before_the_user_began_was_not_interrupted() -> None:
    assert told("........########",
                "..####..........") == [
        (MODEL_STARTED, 2, 3), (USER_STARTED, 8, 10), (MODEL_STOPPED, 6, 10)]


def test_a_model_that_answers_right_after_the_user_s_last_word_does_not_overlap() -> None:
    assert told("..#######...........",
                "...........#########") == [
        (USER_STARTED, 2, 4), (MODEL_STARTED, 11, 12), (USER_STOPPED, 9, 14)]


def test_a_user_who_has_fallen_silent_interrupts_nobody() -> None:
    assert told("......###...........",
                "..##########........")[3:] == [
        (USER_STOPPED, 9, 14), (ENDED, 9, 14), (MODEL_STOPPED, 12, 16)]


def test_a_model_that_an_interrupt_holds_silent_was_interrupted_at_its_first_frame() -> None:
    detector, found = Detector(TABLE, (PAD, 0), 1), []
    for at in range(12):
        if at == 5:  # the answer to that frame is on its way
            detector.hold(3)
        found += [(one, at) for one in detector.step(at, [0], [WORD, 1])]
    assert found == [
        (Happening(MODEL_STARTED, 0), 1), (Happening(MODEL_STOPPED, 6), 6), (Happening(EventKind.INTERRUPTED, 6), 6),
        (Happening(MODEL_STARTED, 9), 10)]


def test_a_few_words_of_the_model_while_the_user_goes_on_are_a_back_channel() -> None:
    assert told("..################",
                "......####........") == [
        (USER_STARTED, 2, 4), (MODEL_STARTED, 6, 7), (BEGUN, 6, 7), (MODEL_STOPPED, 10, 11), (ENDED, 10, 11),
        (EventKind.BACK_CHANNEL, 10, 11)]


def test_more_than_twelve_frames_of_the_model_are_no_back_channel() -> None:
    user, model = "#" * 30, "......" + "#" * 13 + "." * 11
    assert told(user, model)[-2:] == [(EventKind.INTERRUPTED, 19, 20), (ENDED, 19, 20)]
    assert told(user, model.replace("#", ".", 1))[-1] == (EventKind.BACK_CHANNEL, 19, 20)


def test_a_short_answer_to_a_user_who_has_ended_is_no_back_channel() -> None:
    assert EventKind.BACK_CHANNEL not in [kind for kind, _, _ in told("#####................",
                                                                      "......###............")]


def test_skipped_frames_count_in_the_numbers_and_not_in_the_rules() -> None:
    assert told("...####.......", "." * 14, [0, 1, 2, 30, *range(31, 34), *range(40, 47)]) == [
        (USER_STARTED, 30, 32), (USER_STOPPED, 40, 45)]


def test_a_call_that_skips_while_a_run_begins_names_the_frame_that_was_heard() -> None:
    assert told("..####", "......", [0, 1, 10, 20, 21, 22]) == [(USER_STARTED, 10, 21)]


def test_a_codec_without_a_table_leaves_the_model_s_text() -> None:
    detector = Detector(SpeechTable(b"", 2), (PAD, 0), 1)
    assert [one for at in range(9) for one in detector.step(at, [1], [WORD if at > 3 else PAD, 1])] == [
        Happening(MODEL_STARTED, 4)]
