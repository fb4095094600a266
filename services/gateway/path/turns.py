"""The turns of one call: its steps, as the path knows them, to the detector."""

from __future__ import annotations

from collections.abc import Sequence

from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.sessions.history import History
from services.gateway.turns.detector import Detector
from services.gateway.turns.events import Happening
from services.gateway.turns.table import speech_table


class Turns:
    """What happens in one call."""

    def __init__(self, codec: codec_pb2.EncodeReady, lm: lm_pb2.StepReady, history: History) -> None:
        """It goes on from the steps that are kept of the session; what happened in them has been told."""
        self._detector = Detector(speech_table(codec.speech_table, codec.cardinality), lm.silent_text_tokens,
                                  lm.delay_frames)
        for sequence, user_codes, tokens, controls in history.kept_steps():
            self.step(sequence, user_codes, tokens, controls)

    def step(self, sequence: int, user_codes: Sequence[int], tokens: Sequence[int] | None,
             controls: lm_pb2.StepControls | None) -> list[Happening]:
        """What has become certain with a step that had these controls."""
        if controls is not None and (run := controls.WhichOneof("run")):
            # Only an interrupt forces codes; any other run takes its place.
            self._detector.hold(controls.forced.frames or 1 if run == "forced" and controls.forced.codes else 0)
        return self._detector.step(sequence, user_codes, tokens)
