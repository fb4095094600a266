"""What happens in a conversation, from its tokens alone: who speaks, who speaks over whom, and who yields.

Every rule is a number of frames, so that the same tokens always give the same events (docs/protocol.md says them).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from services.gateway.turns.activity import Activity
from services.gateway.turns.events import EventKind, Happening
from services.gateway.turns.table import SpeechTable

START_FRAMES = 2  # of speech in a row begin it
STOP_FRAMES = 5  # without any end it: 400 ms, longer than the pause between two words
YIELD_FRAMES = 2  # of silence show that the model has yielded, while the user speaks
BACK_CHANNEL_FRAMES = 12  # what the model says while the user speaks is a back-channel if it is shorter than this


class Detector:
    """The events of one conversation, step by step."""

    def __init__(self, table: SpeechTable, silent_text_tokens: Collection[int]) -> None:
        """`silent_text_tokens`: those that say nothing. What is not known (no table, no tokens) says nothing."""
        self._table, self._silent = table, frozenset(silent_text_tokens)
        self._user = Activity(START_FRAMES, STOP_FRAMES)
        self._model = Activity(START_FRAMES, STOP_FRAMES)
        self._overlap = False
        self._answers_user = False  # what the model says was begun while the user spoke

    def step(self, sequence: int, user_codes: Sequence[int], tokens: Sequence[int] | None) -> list[Happening]:
        """What has become certain with the caller's frame of this number: its codes, and the text token and own codes
        that answer it, None while the delay line fills.
        """
        found: list[Happening] = []
        if self._user.hear(sequence, bool(self._table) and self._table.log_odds(user_codes) > 0):
            found.append(Happening(EventKind.USER_SPEECH_STARTED if self._user.speaking
                                   else EventKind.USER_SPEECH_STOPPED, self._user.since))
        if self._model.hear(sequence, tokens is not None and self._says(tokens)):
            if self._model.speaking:
                self._answers_user = self._user.speaking
                found.append(Happening(EventKind.MODEL_SPEECH_STARTED, self._model.since))
            else:
                found.append(Happening(EventKind.MODEL_SPEECH_STOPPED, self._model.since))
        elif self._model.speaking and self._user.speaking and self._model.quiet_frames == YIELD_FRAMES:
            began = self._model.since
            self._model.turn()
            short = self._answers_user and self._model.since - began < BACK_CHANNEL_FRAMES
            found.append(Happening(EventKind.MODEL_SPEECH_STOPPED, self._model.since))
            found.append(Happening(EventKind.BACK_CHANNEL if short else EventKind.INTERRUPTED, self._model.since))
        overlap = self._user.speaking and self._model.speaking
        if overlap != self._overlap:
            self._overlap = overlap
            if overlap:
                found.append(Happening(EventKind.OVERLAP_BEGUN, max(self._user.since, self._model.since)))
            else:
                stopped = [one.since for one in (self._user, self._model) if not one.speaking]
                found.append(Happening(EventKind.OVERLAP_ENDED, min(stopped)))
        return found

    def _says(self, tokens: Sequence[int]) -> bool:
        """Whether the model speaks in a frame with these tokens, the text's first."""
        says_text = bool(self._silent) and tokens[0] not in self._silent
        return says_text or (bool(self._table) and self._table.log_odds(tokens[1:]) > 0)
