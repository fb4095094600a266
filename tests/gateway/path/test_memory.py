"""What a row is rebuilt from: enough, no more, and what passed while it was rebuilt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.path.memory import PASSING_FRAMES, DecoderMemory, EncoderMemory, LmMemory, Recent
from services.gateway.sessions.history import History

PRIMING = 4


S16, F32 = audio_pb2.AUDIO_ENCODING_PCM_S16LE, audio_pb2.AUDIO_ENCODING_PCM_F32LE


def pcm(number: int, scale: float = 1 / 32768) -> codec_pb2.EncodeRequest:
    """A frame of two samples that say which one it is."""
    samples = np.array([number, -number], np.float32) * np.float32(scale)
    return codec_pb2.EncodeRequest(frame=audio_pb2.PcmFrame(pcm=samples.tobytes()))


def heard(memory: EncoderMemory, frames: int, priming: int = PRIMING) -> EncoderMemory:
    memory.opened(codec_pb2.EncodeReady(priming_frames=priming))
    for number in range(frames):
        memory.answered(pcm(number), audio_pb2.CodeFrame())
    return memory


def numbers(messages: Sequence[codec_pb2.EncodeRequest]) -> list[int]:
    """Which frames an opening brings; as many as its config announces."""
    config, *pasts = messages
    found = [int(number) for message in pasts for number in np.frombuffer(message.past.pcm, "<i2")[::2]]
    assert len(found) == config.config.past_frames
    return found


def test_a_new_encoder_is_cleared_after_its_first_frame_and_a_resumed_one_is_not() -> None:
    (new,), (resumed,) = EncoderMemory("a session", 0, 8).opening(), EncoderMemory("a session", 7, 8).opening()
    assert new.config.reset_after_first_frame and not resumed.config.reset_after_first_frame


def test_an_encoder_is_primed_with_the_last_frames() -> None:
    opening = heard(EncoderMemory("a session", 0, 5), 10).opening()
    assert numbers(opening) == [6, 7, 8, 9]
    assert opening[0].config == codec_pb2.EncodeConfig(session_id="a session", past_frames=4, codebooks=5)


def test_the_first_frame_of_a_session_is_not_in_its_encoder_s_past() -> None:
    """The encoder was cleared after it."""
    assert numbers(heard(EncoderMemory("a session", 0, 8), 3).opening()) == [1, 2]
    assert numbers(heard(EncoderMemory("a session", 5, 8), 3).opening()) == [0, 1, 2]


def test_a_long_past_comes_in_several_messages() -> None:
    opening = heard(EncoderMemory("a session", 0, 8), 100, priming=80).opening()
    assert numbers(opening) == list(range(20, 100))
    assert [len(message.past.pcm) // 4 for message in opening[1:]] == [32, 32, 16]


@pytest.mark.parametrize(("scale", "encoding", "kept_bytes"), [
    (1 / 32768, S16, 4), (0.5, S16, 4), (0.3, F32, 8), (1.0, F32, 8), (3.0, F32, 8)])
def test_audio_of_16_bits_is_kept_as_such_and_any_other_as_it_is(
        scale: float, encoding: audio_pb2.AudioEncoding, kept_bytes: int) -> None:
    """1.0 is the first sample beyond 16 bits, whose largest is 32767 / 32768."""
    memory = EncoderMemory("a session", 5, 8)
    memory.opened(codec_pb2.EncodeReady(priming_frames=PRIMING))
    memory.answered(pcm(1, scale), audio_pb2.CodeFrame())
    (_, past) = memory.opening()
    assert (past.past.encoding, len(past.past.pcm)) == (encoding, kept_bytes)
    assert memory.since(0) == [pcm(1, scale)]


def test_what_passed_is_sent_again() -> None:
    memory = heard(EncoderMemory("a session", 0, 8), 10)
    assert memory.since(7) == [pcm(7), pcm(8), pcm(9)]
    assert memory.since(10) == []


def test_no_more_is_kept_than_may_be_asked_for() -> None:
    memory = heard(EncoderMemory("a session", 0, 8), 200)
    assert len(memory.since(0)) == PRIMING + PASSING_FRAMES
    recent: Recent[int] = Recent()
    for number in range(10):
        recent.add(number, most=3)
    assert recent.count == 10 and recent.since(0) == [7, 8, 9] and recent.since(9) == [9]


def stepped(history: History, steps: int) -> LmMemory:
    memory = LmMemory("a session", lm_pb2.Sampling(), history)
    memory.opened(lm_pb2.StepReady(sampling=lm_pb2.Sampling(seed=9)))
    begin = history.steps
    for number in range(begin, begin + steps):
        request = lm_pb2.StepRequest(step=lm_pb2.StepInput(frame=audio_pb2.CodeFrame(
            context=audio_pb2.FrameContext(sequence=number), codes=[number, number])))
        answer = lm_pb2.StepFrame(frame=audio_pb2.CodeFrame(codes=[number] if number else []))
        if number:  # the first step fills the delay line
            answer.text_token = 100 + number
        memory.answered(request, answer)
    return memory


def test_a_new_model_row_has_no_past_and_the_sampling_that_was_asked_for() -> None:
    (opening,) = LmMemory("a session", lm_pb2.Sampling(audio_top_k=3), History(2, 1, 1, 100)).opening()
    config = opening.config
    assert config.sampling == lm_pb2.Sampling(audio_top_k=3) and not config.HasField("history")


def test_a_moved_model_row_brings_its_past_and_the_seed_that_was_drawn() -> None:
    (opening,) = stepped(History(2, 1, 1, 100), 5).opening()
    config = opening.config
    assert config.sampling.seed == 9
    assert list(config.history.user_codes) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert list(config.history.tokens) == [101, 1, 102, 2, 103, 3, 104, 4]


def test_steps_are_counted_from_where_the_call_began() -> None:
    """A resumed call's stage counts its own answers, the history those of the whole session."""
    history = History(2, 1, 1, 100)
    stepped(history, 5)
    memory = stepped(history, 3)
    assert [list(request.step.frame.codes) for request in memory.since(1)] == [[6, 6], [7, 7]]


def test_a_decoder_is_primed_with_what_was_said_before_the_cut_and_since() -> None:
    history = History(2, 1, 1, 100)
    stepped(history, 4)
    memory = DecoderMemory("a session", history, PRIMING)
    assert list(memory.opening()[0].config.priming_codes) == [1, 2, 3]
    memory.opened(codec_pb2.DecodeReady(priming_frames=PRIMING))
    for code in (50, 51):
        memory.answered(codec_pb2.DecodeRequest(frame=audio_pb2.CodeFrame(codes=[code])), audio_pb2.PcmFrame())
    (opening,) = memory.opening()
    assert list(opening.config.priming_codes) == [2, 3, 50, 51] and opening.config.codebooks == 1
    assert [list(request.frame.codes) for request in memory.since(1)] == [[51]]


def test_an_encoder_that_opens_with_a_past_counts_its_own_answers() -> None:
    past = [np.array([number, -number], np.float32) / np.float32(32768) for number in range(-3, 0)]
    memory = EncoderMemory("a session", 5, 8, past, PRIMING)
    assert numbers(memory.opening()) == [-3, -2, -1]
    heard(memory, 3)
    assert numbers(memory.opening()) == [-1, 0, 1, 2]
    assert [int(np.frombuffer(request.frame.pcm, "<f4")[0] * 32768) for request in memory.since(1)] == [1, 2]
