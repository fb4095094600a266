"""What happens in a conversation, from its tokens alone: who speaks, who speaks over whom, and who yields.

Every rule is a number of frames, so that the same tokens always give the same events; docs/protocol.md says them all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from services.gateway.turns.activity import Activity, Hysteresis
from services.gateway.turns.events import EventKind, Happening
from services.gateway.turns.table import UNITS, SpeechTable

# The user's codes come through a microphone, with whatever noise there is. Five frames are longer than the pause
# between two words.
USER = Hysteresis(mean_frames=3, most=12 * UNITS, start_sum=9 * UNITS, slack=UNITS // 2,
                  stop_at=-3 * UNITS // 2, stop_frames=5)
# The model's own codes are clean: each frame speaks for itself.
MODEL = Hysteresis(mean_frames=1, most=3 * UNITS, start_sum=4 * UNITS, slack=0, stop_at=0, stop_frames=5)
TEXT_ODDS = 4 * UNITS  # of speech in a frame whose text token says something
YIELD_FRAMES = 2  # of silence show that the model has stopped, while the user speaks over it
YIELD_LATE_FRAMES = 1  # by which the user's speech may seem to begin later than the model's silence: onsets are soft
YIELD_HINT = 3  # a model that falls silent is evidence, too: then this part of what else begins the user's speech does
BACK_CHANNEL_FRAMES = 12  # 0.96 s: what the model says while the user speaks is a back-channel if it is not longer


class Detector:
    """The events of one conversation, step by step."""

    def __init__(self, table: SpeechTable, silent_text_tokens: Collection[int], delay_frames: int) -> None:
        """`silent_text_tokens`: those that say nothing. What is not known (no table, no tokens) says nothing."""
        self._table, self._silent = table, frozenset(silent_text_tokens)
        self._user, self._model = Activity(USER), Activity(MODEL)
        self._overlap = False
        self._turn_of_user = False  # the model began to speak while the user spoke
        self._delay_frames = delay_frames
        self._steps = 0
        self._held = range(0)  # steps whose answer an interrupt keeps silent
        self._aside: int | None = None  # where something short ended that may turn out to be a back-channel

    def hold(self, frames: int) -> None:
        """An interrupt keeps the model silent for so many frames, from the next one that `step` gets; its answer comes
        later by the delay.
        """
        first = self._steps + self._delay_frames
        self._held = range(first, first + frames)

    def step(self, sequence: int, user_codes: Sequence[int], tokens: Sequence[int] | None) -> list[Happening]:
        """What has become certain with the caller's frame of this number: its codes, and the text token and own codes
        that answer it, None while the delay line fills.
        """
        held, self._steps = self._steps in self._held, self._steps + 1
        user, model = self._user, self._model
        found: list[Happening] = []
        if user.hear(sequence, self._table.log_odds(user_codes)):
            found.append(Happening(EventKind.USER_SPEECH_STARTED if user.speaking else EventKind.USER_SPEECH_STOPPED,
                                   user.since))
        if model.hear(sequence, -MODEL.most if tokens is None or held else self._model_odds(tokens)):
            self._turn_of_user = user.speaking
            found.append(Happening(EventKind.MODEL_SPEECH_STARTED if model.speaking
                                   else EventKind.MODEL_SPEECH_STOPPED, model.since))
        if not (model.speaking or self._overlap or self._aside is not None):  # nothing below can be: most frames
            return found
        if self._yields_to_somebody():
            user.turn()
            found.append(Happening(EventKind.USER_SPEECH_STARTED, user.since))
        if self._overlaps():
            self._overlap = True
            found.append(Happening(EventKind.OVERLAP_BEGUN, max(user.since, model.since)))
        if model.speaking and (held or self._yields()):
            began = model.since
            model.turn()
            found.append(Happening(EventKind.MODEL_SPEECH_STOPPED, model.since))
            if not held and self._turn_of_user and model.since - began <= BACK_CHANNEL_FRAMES:
                self._aside = model.since
            else:
                found.append(Happening(EventKind.INTERRUPTED, model.since))
        if self._overlap and not (user.speaking and model.speaking):
            self._overlap = False
            found.append(Happening(EventKind.OVERLAP_ENDED,
                                   min(one.since for one in (user, model) if not one.speaking)))
        if self._aside is not None:
            if not user.speaking or model.speaking:
                self._aside = None
            elif not user.quiet_frames:
                found.append(Happening(EventKind.BACK_CHANNEL, self._aside))
                self._aside = None
        return found

    def _model_odds(self, tokens: Sequence[int]) -> int:
        """Log odds of speech in a frame with these tokens, the text's first."""
        says_text = self._silent and tokens[0] not in self._silent
        return self._table.log_odds(tokens[1:]) + (TEXT_ODDS if says_text else 0)

    def _yields(self) -> bool:
        """Whether the model has just stopped because the user speaks, who began no later than that and goes on."""
        user, model = self._user, self._model
        return (model.quiet_frames >= YIELD_FRAMES and user.speaking and user.quiet_frames < YIELD_FRAMES
                and user.since <= model.run_since + YIELD_LATE_FRAMES)

    def _yields_to_somebody(self) -> bool:
        """Whether the model has just stopped, and the user may have begun to speak right before."""
        user, model = self._user, self._model
        return (model.speaking and model.quiet_frames >= YIELD_FRAMES and not user.speaking and not user.quiet_frames
                and user.evidence * YIELD_HINT >= user.start_sum
                and user.run_since <= model.run_since + YIELD_LATE_FRAMES)

    def _overlaps(self) -> bool:
        """Whether both have begun to speak, and neither had fallen silent before the other began."""
        user, model = self._user, self._model
        begun = max(user.since, model.since)
        return (not self._overlap and user.speaking and model.speaking
                and (not user.quiet_frames or user.run_since >= begun)
                and (not model.quiet_frames or model.run_since + YIELD_LATE_FRAMES >= begun))
