"""What the gateway remembers of a session so that its rows can be rebuilt at other replicas.

Audio is only ever kept here, in memory: half a minute of it at most, as much as the codec can be primed with.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.path.audio import Pcm
from services.gateway.sessions.history import History
from services.mesh.samples import FULL_SCALE, from_s16

# Frames kept beyond those that prime a row: what passes while one is primed, two seconds of it.
PASSING_FRAMES = 25
# Of a past, in one message: a quarter of what a message may have as floats, since others share the stream.
FRAMES_PER_MESSAGE = 32

Item = TypeVar("Item")


class Recent(Generic[Item]):
    """The last items of a session."""

    def __init__(self) -> None:
        self.count = 0  # of all, also those that have left
        self._kept: deque[Item] = deque()

    def add(self, item: Item, most: int) -> None:
        """Remember an item, and at most so many."""
        self.count += 1
        self._kept.append(item)
        while len(self._kept) > most:
            self._kept.popleft()

    def since(self, count: int) -> list[Item]:
        """Those after the first `count`, as far as they are kept."""
        first = self.count - len(self._kept)
        return list(self._kept)[max(count - first, 0):]


@dataclass(frozen=True)
class Samples:
    """One frame of a caller's audio, in 16 bits where that is all there is to it: half the memory of floats."""

    encoding: audio_pb2.AudioEncoding
    pcm: bytes

    @classmethod
    def of(cls, pcm: bytes) -> Samples:
        """From float samples."""
        scaled = np.frombuffer(pcm, "<f4") * FULL_SCALE
        whole = scaled.clip(-FULL_SCALE, FULL_SCALE - 1).astype("<i2")
        if (whole == scaled).all():
            return cls(audio_pb2.AUDIO_ENCODING_PCM_S16LE, whole.tobytes())
        return cls(audio_pb2.AUDIO_ENCODING_PCM_F32LE, pcm)

    def floats(self) -> bytes:
        """The float samples again."""
        if self.encoding == audio_pb2.AUDIO_ENCODING_PCM_F32LE:
            return self.pcm
        return from_s16(self.pcm).tobytes()


class EncoderMemory:
    """What the encoder has heard."""

    def __init__(self, session_id: str, first_sequence: int, codebooks: int, past: Sequence[Pcm] = (),
                 priming_frames: int = 0) -> None:
        """`codebooks` is how many codes the language model hears of each frame. `past` are frames from first_sequence
        on that the first row hears before it opens, `priming_frames` of them at the most.
        """
        self._session_id, self._codebooks = session_id, codebooks
        self._starts_session = first_sequence == 0
        self._priming_frames = priming_frames
        self._recent: Recent[Samples] = Recent()
        for pcm in past:
            self._recent.add(Samples.of(pcm.astype("<f4", copy=False).tobytes()), priming_frames + PASSING_FRAMES)
        self._frames_before = self._recent.count

    def opening(self) -> list[codec_pb2.EncodeRequest]:
        """See Memory."""
        config = codec_pb2.EncodeConfig(session_id=self._session_id, codebooks=self._codebooks)
        if not self._recent.count:
            config.reset_after_first_frame = self._starts_session
            return [codec_pb2.EncodeRequest(config=config)]
        # The encoder was cleared after the session's first frame.
        heard = self._recent.since(max(1 if self._starts_session else 0, self._recent.count - self._priming_frames))
        config.past_frames = len(heard)
        messages = [codec_pb2.EncodeRequest(config=config)]
        for encoding, alike in itertools.groupby(heard, lambda samples: samples.encoding):
            while pcm := b"".join(samples.pcm for samples in itertools.islice(alike, FRAMES_PER_MESSAGE)):
                messages.append(codec_pb2.EncodeRequest(past=codec_pb2.EncodePast(encoding=encoding, pcm=pcm)))
        return messages

    def opened(self, ready: codec_pb2.EncodeReady) -> None:
        """See Memory."""
        self._priming_frames = ready.priming_frames

    def answered(self, request: codec_pb2.EncodeRequest, frame: audio_pb2.CodeFrame) -> None:
        """See Memory."""
        self._recent.add(Samples.of(request.frame.pcm), self._priming_frames + PASSING_FRAMES)

    def since(self, answers: int) -> list[codec_pb2.EncodeRequest]:
        """See Memory."""
        return [codec_pb2.EncodeRequest(frame=audio_pb2.PcmFrame(pcm=samples.floats()))
                for samples in self._recent.since(self._frames_before + answers)]


class LmMemory:
    """What the language model has heard and said."""

    def __init__(self, session_id: str, sampling: lm_pb2.Sampling, history: History) -> None:
        """`history` has steps when the session is resumed."""
        self.history = history
        self._session_id, self._sampling = session_id, sampling
        self._steps_before = history.steps

    def opening(self) -> list[lm_pb2.StepRequest]:
        """See Memory."""
        config = lm_pb2.StepConfig(session_id=self._session_id, sampling=self._sampling, prompt=self.history.prompt)
        if self.history.steps:
            config.history.CopyFrom(self.history.to_proto())
        return [lm_pb2.StepRequest(config=config)]

    def opened(self, ready: lm_pb2.StepReady) -> None:
        """See Memory."""
        if not self.history.steps:  # else it is what a later control has set
            self._sampling = ready.sampling  # the seed may have been drawn there

    def answered(self, request: lm_pb2.StepRequest, step: lm_pb2.StepFrame) -> None:
        """See Memory."""
        tokens = [step.text_token, *step.frame.codes] if step.HasField("text_token") else None
        heard = request.step.frame
        controls = request.step.controls if request.step.HasField("controls") else None
        self.history.append(heard.context.sequence, heard.codes, tokens, controls)

    def since(self, answers: int) -> list[lm_pb2.StepRequest]:
        """See Memory."""
        first, controls = self._steps_before + answers, self.history.controls.by_step()
        return [lm_pb2.StepRequest(step=lm_pb2.StepInput(frame=audio_pb2.CodeFrame(codes=codes),
                                                         controls=controls.get(step)))
                for step, codes in enumerate(self.history.user_codes_from(first), first)]


class DecoderMemory:
    """What the decoder has said."""

    def __init__(self, session_id: str, history: History, priming_frames: int) -> None:
        """`history` has steps when the session is resumed."""
        self._session_id, self._priming_frames = session_id, priming_frames
        self._codebooks = history.own_codebooks
        self._before = history.last_own_codes(priming_frames)
        self._recent: Recent[list[int]] = Recent()

    def opening(self) -> list[codec_pb2.DecodeRequest]:
        """See Memory."""
        said = [*self._before, *self._recent.since(0)]
        codes = itertools.chain.from_iterable(said[max(len(said) - self._priming_frames, 0):])
        return [codec_pb2.DecodeRequest(config=codec_pb2.DecodeConfig(
            session_id=self._session_id, codebooks=self._codebooks, priming_codes=codes))]

    def opened(self, ready: codec_pb2.DecodeReady) -> None:
        """See Memory."""
        self._priming_frames = ready.priming_frames

    def answered(self, request: codec_pb2.DecodeRequest, frame: audio_pb2.PcmFrame) -> None:
        """See Memory."""
        self._recent.add(list(request.frame.codes), self._priming_frames + PASSING_FRAMES)

    def since(self, answers: int) -> list[codec_pb2.DecodeRequest]:
        """See Memory."""
        return [codec_pb2.DecodeRequest(frame=audio_pb2.CodeFrame(codes=codes))
                for codes in self._recent.since(answers)]
