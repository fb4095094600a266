"""Where a call's turns stand when it begins: recomputed from the steps of its session before."""

from __future__ import annotations

from services.gateway.path.pipeline import Rows
from services.gateway.sessions.history import History
from services.gateway.turns.detector import Detector
from services.gateway.turns.table import speech_table


def turns_so_far(rows: Rows, history: History) -> Detector:
    """A detector that knows the session's steps; what happened in them has been told."""
    codec = rows.codec_ready
    detector = Detector(speech_table(codec.speech_table, codec.cardinality), rows.lm_ready.silent_text_tokens)
    for sequence, user_codes, tokens in history.kept_steps():
        detector.step(sequence, user_codes, tokens)
    return detector
