"""What a row is rebuilt from: enough, no more, and what passed while it was rebuilt."""

from __future__ import annotations

from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.path.memory import PASSING_FRAMES, DecoderMemory, EncoderMemory, LmMemory, Recent
from services.gateway.sessions.history import History

PRIMING = 4


def pcm(number: int) -> codec_pb2.EncodeRequest:
    return codec_pb2.EncodeRequest(frame=audio_pb2.PcmFrame(pcm=bytes([number])))


def heard(memory: EncoderMemory, frames: int) -> EncoderMemory:
    memory.opened(codec_pb2.EncodeReady(priming_frames=PRIMING))
    for number in range(frames):
        memory.answered(pcm(number), audio_pb2.CodeFrame())
    return memory


def test_a_new_encoder_is_cleared_after_its_first_frame_and_a_resumed_one_is_not() -> None:
    assert EncoderMemory("a session", 0).opening().config.reset_after_first_frame
    assert not EncoderMemory("a session", 7).opening().config.reset_after_first_frame


def test_an_encoder_is_primed_with_the_last_frames() -> None:
    config = heard(EncoderMemory("a session", 0), 10).opening().config
    assert list(config.priming_pcm) == [6, 7, 8, 9]
    assert not config.reset_after_first_frame and config.session_id == "a session"


def test_the_first_frame_of_a_session_is_not_in_its_encoder_s_past() -> None:
    """The encoder was cleared after it."""
    assert list(heard(EncoderMemory("a session", 0), 3).opening().config.priming_pcm) == [1, 2]
    assert list(heard(EncoderMemory("a session", 5), 3).opening().config.priming_pcm) == [0, 1, 2]


def test_what_passed_is_sent_again() -> None:
    memory = heard(EncoderMemory("a session", 0), 10)
    assert [request.frame.pcm[0] for request in memory.since(7)] == [7, 8, 9]
    assert memory.since(10) == []


def test_no_more_is_kept_than_may_be_asked_for() -> None:
    memory = heard(EncoderMemory("a session", 0), 200)
    assert len(memory.since(0)) == PRIMING + PASSING_FRAMES
    recent: Recent[codec_pb2.EncodeRequest] = Recent()
    for number in range(10):
        recent.add(pcm(number), most=3)
    assert recent.count == 10 and [request.frame.pcm[0] for request in recent.since(0)] == [7, 8, 9]
    assert [request.frame.pcm[0] for request in recent.since(9)] == [9]


def stepped(history: History, steps: int) -> LmMemory:
    memory = LmMemory("a session", lm_pb2.Sampling(), history)
    memory.opened(lm_pb2.StepReady(sampling=lm_pb2.Sampling(seed=9)))
    begin = history.steps
    for number in range(begin, begin + steps):
        request = lm_pb2.StepRequest(frame=audio_pb2.CodeFrame(
            context=audio_pb2.FrameContext(sequence=number), codes=[number, number]))
        answer = lm_pb2.StepFrame(frame=audio_pb2.CodeFrame(codes=[number] if number else []))
        if number:  # the first step fills the delay line
            answer.text_token = 100 + number
        memory.answered(request, answer)
    return memory


def test_a_new_model_row_has_no_past_and_the_sampling_that_was_asked_for() -> None:
    config = LmMemory("a session", lm_pb2.Sampling(audio_top_k=3), History(2, 1, 1, 100)).opening().config
    assert config.sampling == lm_pb2.Sampling(audio_top_k=3) and not config.HasField("history")


def test_a_moved_model_row_brings_its_past_and_the_seed_that_was_drawn() -> None:
    config = stepped(History(2, 1, 1, 100), 5).opening().config
    assert config.sampling.seed == 9
    assert list(config.history.user_codes) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert list(config.history.tokens) == [101, 1, 102, 2, 103, 3, 104, 4]


def test_steps_are_counted_from_where_the_call_began() -> None:
    """A resumed call's stage counts its own answers, the history those of the whole session."""
    history = History(2, 1, 1, 100)
    stepped(history, 5)
    memory = stepped(history, 3)
    assert [list(request.frame.codes) for request in memory.since(1)] == [[6, 6], [7, 7]]


def test_a_decoder_is_primed_with_what_was_said_before_the_cut_and_since() -> None:
    history = History(2, 1, 1, 100)
    stepped(history, 4)
    memory = DecoderMemory("a session", history, PRIMING)
    assert list(memory.opening().config.priming_codes) == [1, 2, 3]
    memory.opened(codec_pb2.DecodeReady(priming_frames=PRIMING))
    for code in (50, 51):
        memory.answered(codec_pb2.DecodeRequest(frame=audio_pb2.CodeFrame(codes=[code])), audio_pb2.PcmFrame())
    assert list(memory.opening().config.priming_codes) == [2, 3, 50, 51]
    assert [list(request.frame.codes) for request in memory.since(1)] == [[51]]
