"""Calls at the caller's own rate, against a desk that says back what it hears, and through the whole gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from moshimesh.audio.v1 import audio_pb2
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.lm.v1 import lm_pb2

from harness.resample_floor import floor_db, tone
from services.gateway.calls.callers import Audio, Caller, Input, Interrupt, New, Opening, Resumed
from services.gateway.calls.events import Event, Ready, Speech, Summary
from services.gateway.edges.own_rate import hold_at
from services.gateway.edges.resampling import RATES_HERTZ, Resampler
from services.gateway.path.audio import Pcm
from services.mesh.errors import InvalidRequest
from tests.gateway.door import Gateway, codec, lm

FRAME, DELAY = 1920, 1
CALLER = Caller.with_key("", "127.0.0.1:1", "test")


class EchoDesk:
    """Says back each frame that it hears, one frame late, as the delay line of a model does."""

    def __init__(self) -> None:
        self.heard: list[Input] = []

    async def info(self) -> Any:
        return SimpleNamespace(sample_rate_hertz=24_000)

    async def hold(self, caller: Caller, opening: Opening, inputs: AsyncIterator[Input]
                   ) -> AsyncGenerator[Event, None]:
        yield Ready("s", "m", "c", 24_000, FRAME, 8, DELAY, lm_pb2.Sampling(), "", 60.0, 0, 0, 0)
        self.heard = [given async for given in inputs]
        said = [given.pcm for given in self.heard if isinstance(given, Audio)]
        pcm = np.concatenate((np.zeros(0, np.float32), *said))
        frames = np.pad(pcm, (0, -len(pcm) % FRAME)).reshape(-1, FRAME)
        for number, frame in enumerate(frames):
            context = audio_pb2.FrameContext(sequence=opening.first_sequence + number + DELAY, capture_unix_nanos=10**9)
            context.hops.add(hop=audio_pb2.HOP_GATEWAY_INGEST, received_unix_nanos=10**9)
            context.hops.add(hop=audio_pb2.HOP_GATEWAY_EMIT, finished_unix_nanos=2 * 10**9)
            yield Speech(context, frame, "", 0, [], 0)
        yield Summary(len(frames), len(frames), 0)


async def say(desk: Any, rate: int, pieces: Sequence[Pcm], origin: New | Resumed | None = None) -> list[Event]:
    async def inputs() -> AsyncIterator[Input]:
        for piece in pieces:
            yield Audio(piece)

    return [event async for event in hold_at(desk, CALLER, Opening(origin or New()), rate, inputs())]


def cut(pcm: Pcm, samples: int) -> list[Pcm]:
    return [pcm[at:at + samples] for at in range(0, len(pcm), samples)]


async def test_at_the_meshs_rate_nothing_is_touched() -> None:
    desk, pieces = EchoDesk(), cut(tone(24_000), 240)
    ready, *said, _ = await say(desk, 24_000, pieces)
    assert isinstance(ready, Ready) and (ready.sample_rate_hertz, ready.samples_per_frame) == (24_000, FRAME)
    assert all(given.pcm is piece for given, piece in zip(desk.heard, pieces, strict=True))  # type: ignore[union-attr]
    assert all(speech.context.capture_unix_nanos == 10**9 for speech in said if isinstance(speech, Speech))


@pytest.mark.parametrize("rate", [rate for rate in RATES_HERTZ if rate != 24_000])
async def test_at_another_rate_each_answer_has_its_share_and_the_last_one_the_rest(rate: int) -> None:
    desk, pcm = EchoDesk(), tone(rate)
    ready, *said, summary = await say(desk, rate, cut(pcm, rate // 100))
    assert isinstance(ready, Ready) and (ready.sample_rate_hertz, ready.samples_per_frame) == (rate, rate * 8 // 100)
    assert isinstance(summary, Summary)
    answers = [speech.pcm for speech in said if isinstance(speech, Speech)]
    delay_s = Resampler(rate, 24_000).delay_s
    assert {len(answer) for answer in answers[:-1]} == {rate * 8 // 100}
    assert len(answers[-1]) == pytest.approx(rate * 8 // 100 + delay_s * rate, abs=4)
    echoed = np.concatenate(answers)
    # There and back: twice the delay later, the same.
    late = round(2 * delay_s * rate)
    assert floor_db(echoed[late:late + len(pcm)], rate) < -80
    times = np.arange(len(pcm)) / rate - (2 * delay_s)
    middle = slice(rate // 20, -rate // 20)
    np.testing.assert_allclose(echoed[:len(pcm)][middle], 0.5 * np.sin(2 * np.pi * 1000 * times)[middle], atol=1e-4)


async def test_the_delay_is_counted_in_the_timings() -> None:
    _, speech, *_ = await say(EchoDesk(), 8000, [np.zeros(640, np.float32)])
    assert isinstance(speech, Speech)
    delay_nanos = round(Resampler(8000, 24_000).delay_s * 1e9)
    assert speech.context.capture_unix_nanos == speech.context.hops[0].received_unix_nanos == 10**9 - delay_nanos
    assert speech.context.hops[-1].finished_unix_nanos == pytest.approx(2 * 10**9 + delay_nanos, abs=1000)


async def test_a_resumed_call_may_have_another_rate() -> None:
    *_, last, _ = await say(EchoDesk(), 16_000, [np.zeros(1280, np.float32)] * 3, Resumed("handle", 5))
    assert isinstance(last, Speech)
    assert last.context.sequence == 5 + 3 + DELAY  # the filter's rest began a fourth frame
    assert len(last.pcm) > 1280


async def test_silence_and_a_few_samples_and_controls() -> None:
    """Nothing at all; a last piece that is less than one sample of the mesh; what is no audio."""
    async def nothing() -> AsyncIterator[Input]:
        yield Interrupt()

    async def little() -> AsyncIterator[Input]:
        yield Audio(np.zeros(481, np.float32))
        yield Audio(np.zeros(1, np.float32))

    for inputs, kinds in ((nothing(), {Interrupt}), (little(), {Audio})):
        desk: Any = EchoDesk()
        assert isinstance([event async for event in hold_at(desk, CALLER, Opening(New()), 48_000, inputs)][-1], Summary)
        assert {type(given) for given in desk.heard} == kinds
        assert all(len(given.pcm) for given in desk.heard if isinstance(given, Audio))


@pytest.mark.parametrize("rate", [0, 1, 11_025, 23_999, 96_000])
async def test_a_rate_that_no_caller_may_have(rate: int) -> None:
    with pytest.raises(InvalidRequest, match="22050") as caught:
        await say(EchoDesk(), rate, [])
    assert caught.value.reason == "BAD_SAMPLE_RATE"


async def test_through_a_gateway() -> None:
    async def requests() -> AsyncIterator[pb.ConverseRequest]:
        yield pb.ConverseRequest(config=pb.ConverseConfig(
            sample_rate_hertz=22_050, pacing=pb.PACING_OFFLINE, encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE))
        for _ in range(40):
            yield pb.ConverseRequest(audio=pb.AudioChunk(pcm=bytes(2 * 441)))

    async with Gateway([codec("mimi", 1)], [lm("one", "mimi", 1)]) as gateway:
        responses = [response async for response in gateway.stub.Converse(requests())]
    assert (responses[0].ready.sample_rate_hertz, responses[0].ready.samples_per_frame) == (22_050, 1764)
    said = [response.speech for response in responses[1:-1]]
    assert [speech.context.sequence for speech in said] == list(range(1, 12))
    assert [len(speech.pcm) // 2 for speech in said[:-1]] == [1764] * 10
    assert 1764 < len(said[-1].pcm) // 2 < 1764 + 100
    assert responses[-1].summary.frames_in == 11  # ten, and what the filter held
