"""What a caller decides about its conversation, from the edge to the frame with which it takes effect."""

from __future__ import annotations

from collections.abc import AsyncIterator

from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import Audio, Control, Input, Interrupt, PlayedOut, Say, SetSampling
from services.gateway.calls.limits import Use
from services.gateway.calls.transcript import Transcript
from services.gateway.path.audio import Pcm
from services.gateway.path.ingest import Ingest
from services.gateway.path.pipeline import Pipeline, Rows
from services.mesh.errors import InvalidRequest, TooManyControls

LONGEST_HOLD_MS = 10_000
LONGEST_TEXT = 1000  # characters: more than a minute of speech; a longer one is said in parts
# Controls that may come at once, and for each second of audio that comes with them: a slider that is moved, and what a
# loudspeaker tells with every frame. By the audio's clock, since a call that is resumed brings seconds of both at once.
CONTROLS_BURST, CONTROLS_PER_S = 50.0, 20.0


class Direction:
    """The caller's controls in one call."""

    def __init__(self, rows: Rows, ingest: Ingest, pipeline: Pipeline, transcript: Transcript, use: Use
                 ) -> None:
        self._rows, self._ingest, self._pipeline, self._transcript = rows, ingest, pipeline, transcript
        self._use = use
        self._taken = 0.0  # controls, less those that may come with the audio since

    async def audio(self, inputs: AsyncIterator[Input]) -> AsyncIterator[Pcm]:
        """The caller's audio; controls take effect at the first frame that is cut after them. Raises MeshError."""
        rate = self._rows.audio.sample_rate_hertz
        async for given in inputs:
            if isinstance(given, Audio):
                seconds = len(given.pcm) / rate
                self._use.audio_s += seconds
                self._taken = max(self._taken - CONTROLS_PER_S * seconds, 0.0)
                yield given.pcm
            else:
                self._take(given)

    def _take(self, control: Control) -> None:
        self._taken += 1
        if self._taken > CONTROLS_BURST:
            raise TooManyControls(f"a call may bring {CONTROLS_PER_S:g} controls a second of its audio, and "
                                  f"{CONTROLS_BURST:g} at once")
        match control:
            case SetSampling():
                self._ingest.direct(lm_pb2.StepControls(sampling=control.sampling))
            case Interrupt():
                self._ingest.direct(self._silenced(control.hold_ms))
                # The answer that has the first frame of silence is as late as all are.
                self._transcript.cut(self._ingest.next_cut + self._rows.lm_ready.delay_frames)
            case Say():
                self._ingest.direct(lm_pb2.StepControls(say=lm_pb2.Say(text=_checked(control.text))))
            case PlayedOut():
                if heard := self._transcript.played(control.sequence):
                    self._pipeline.tell(heard)

    def _silenced(self, hold_ms: int) -> lm_pb2.StepControls:
        """Padding and silence for as many frames as the time takes."""
        if not 1 <= hold_ms <= LONGEST_HOLD_MS:
            raise InvalidRequest("BAD_CONTROL", f"hold_ms must be between 1 and {LONGEST_HOLD_MS}, got {hold_ms}",
                                 field="control.interrupt.hold_ms", accepted=f"1..{LONGEST_HOLD_MS}")
        codec, lm = self._rows.codec_ready, self._rows.lm_ready
        silence = codec.silence_codes[:lm.own_codebooks]
        if not silence or not lm.silent_text_tokens:
            raise InvalidRequest("CONTROLS_UNSUPPORTED", "a replica of an older version serves this call, and can't be "
                                 "interrupted", field="control.interrupt")
        return lm_pb2.StepControls(forced=lm_pb2.ForcedTokens(
            text_token=lm.silent_text_tokens[0], codes=silence,
            frames=-(-hold_ms * 1_000_000 // self._rows.audio.frame_nanos)))


def _checked(text: str) -> str:
    if not text.strip() or len(text) > LONGEST_TEXT:
        raise InvalidRequest("BAD_CONTROL", f"a text to say must have 1 to {LONGEST_TEXT} characters, got {len(text)}",
                             field="control.say.text", accepted=f"1..{LONGEST_TEXT}")
    return text
