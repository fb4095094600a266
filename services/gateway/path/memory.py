"""What the gateway remembers of a session so that its rows can be rebuilt at other replicas.

Audio is only ever kept here, in memory: a few seconds of it, as much as the codec itself remembers.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Generic, TypeVar

from google.protobuf.message import Message
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.sessions.history import History

# Frames kept beyond those that prime a row: what passes while one is primed, two seconds of it.
PASSING_FRAMES = 25

Request = TypeVar("Request", bound=Message)


class Recent(Generic[Request]):
    """The last requests of a session."""

    def __init__(self) -> None:
        self.count = 0  # of all, also those that have left
        self._kept: deque[Request] = deque()

    def add(self, request: Request, most: int) -> None:
        """Remember a request, and at most so many."""
        self.count += 1
        self._kept.append(request)
        while len(self._kept) > most:
            self._kept.popleft()

    def since(self, count: int) -> list[Request]:
        """Those after the first `count`, as far as they are kept."""
        first = self.count - len(self._kept)
        return list(self._kept)[max(count - first, 0):]


class EncoderMemory:
    """What the encoder has heard."""

    def __init__(self, session_id: str, first_sequence: int) -> None:
        self._session_id = session_id
        self._starts_session = first_sequence == 0
        self._priming_frames = 0
        self._recent: Recent[codec_pb2.EncodeRequest] = Recent()

    def opening(self) -> codec_pb2.EncodeRequest:
        """See Memory."""
        config = codec_pb2.EncodeConfig(session_id=self._session_id)
        if not self._recent.count:
            config.reset_after_first_frame = self._starts_session
        else:
            # The encoder was cleared after the session's first frame.
            heard = self._recent.since(max(1 if self._starts_session else 0, self._recent.count - self._priming_frames))
            config.priming_pcm = b"".join(request.frame.pcm for request in heard)
        return codec_pb2.EncodeRequest(config=config)

    def opened(self, ready: codec_pb2.EncodeReady) -> None:
        """See Memory."""
        self._priming_frames = ready.priming_frames

    def answered(self, request: codec_pb2.EncodeRequest, frame: audio_pb2.CodeFrame) -> None:
        """See Memory."""
        self._recent.add(request, self._priming_frames + PASSING_FRAMES)

    def since(self, answers: int) -> list[codec_pb2.EncodeRequest]:
        """See Memory."""
        return self._recent.since(answers)


class LmMemory:
    """What the language model has heard and said."""

    def __init__(self, session_id: str, sampling: lm_pb2.Sampling, history: History) -> None:
        """`history` has steps when the session is resumed."""
        self.history = history
        self._session_id, self._sampling = session_id, sampling
        self._steps_before = history.steps

    def opening(self) -> lm_pb2.StepRequest:
        """See Memory."""
        config = lm_pb2.StepConfig(session_id=self._session_id, sampling=self._sampling)
        if self.history.steps:
            config.history.CopyFrom(self.history.to_proto())
        return lm_pb2.StepRequest(config=config)

    def opened(self, ready: lm_pb2.StepReady) -> None:
        """See Memory."""
        self._sampling = ready.sampling  # the seed may have been drawn there

    def answered(self, request: lm_pb2.StepRequest, step: lm_pb2.StepFrame) -> None:
        """See Memory."""
        tokens = [step.text_token, *step.frame.codes] if step.HasField("text_token") else None
        heard = request.step.frame
        self.history.append(heard.context.sequence, heard.codes, tokens)

    def since(self, answers: int) -> list[lm_pb2.StepRequest]:
        """See Memory."""
        return [lm_pb2.StepRequest(step=lm_pb2.StepInput(frame=audio_pb2.CodeFrame(codes=codes)))
                for codes in self.history.user_codes_from(self._steps_before + answers)]


class DecoderMemory:
    """What the decoder has said."""

    def __init__(self, session_id: str, history: History, priming_frames: int) -> None:
        """`history` has steps when the session is resumed."""
        self._session_id, self._priming_frames = session_id, priming_frames
        self._before = history.last_own_codes(priming_frames)
        self._recent: Recent[codec_pb2.DecodeRequest] = Recent()

    def opening(self) -> codec_pb2.DecodeRequest:
        """See Memory."""
        said = [*self._before, *(request.frame.codes for request in self._recent.since(0))]
        codes = itertools.chain.from_iterable(said[max(len(said) - self._priming_frames, 0):])
        return codec_pb2.DecodeRequest(config=codec_pb2.DecodeConfig(session_id=self._session_id,
                                                                     priming_codes=codes))

    def opened(self, ready: codec_pb2.DecodeReady) -> None:
        """See Memory."""
        self._priming_frames = ready.priming_frames

    def answered(self, request: codec_pb2.DecodeRequest, frame: audio_pb2.PcmFrame) -> None:
        """See Memory."""
        self._recent.add(request, self._priming_frames + PASSING_FRAMES)

    def since(self, answers: int) -> list[codec_pb2.DecodeRequest]:
        """See Memory."""
        return self._recent.since(answers)
