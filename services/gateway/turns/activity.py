"""When somebody speaks: log odds of speech, frame by frame, to a state with hysteresis."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Hysteresis:
    """What it takes to change a speaker's state. Log odds are in the units of the speech table.

    A frame is judged by the mean of its log odds and those of the frames around it, `mean_frames` in all (odd), so one
    frame or more later; none counts as further from 0 than `most`.
    """

    mean_frames: int
    most: int
    start_sum: int
    """Speech starts when the frames in a row that are above `stop_at` make up so much, and began with the first one:
    much evidence is believed sooner than little."""
    slack: int
    """What each of these frames must have before it counts."""
    stop_at: int
    """Speech stops with the first of `stop_frames` in a row that are not above this."""
    stop_frames: int


class Activity:
    """One speaker."""

    def __init__(self, hysteresis: Hysteresis) -> None:
        self.speaking = False
        self.since = 0
        """The caller's number of the frame at which the present state began."""
        self.quiet_frames = 0
        """How many of the last frames were not above `stop_at`."""
        self.run_since = 0
        """The caller's number of the first of the last frames that were alike in that."""
        rules = self._rules = hysteresis
        # Of sums, not of means.
        self.start_sum, self._slack, self._stop_at = (
            rules.mean_frames * number for number in (rules.start_sum, rules.slack, rules.stop_at))
        self._odds = deque([-rules.most] * rules.mean_frames, rules.mean_frames)
        self._sequences: deque[int] = deque(maxlen=1 + rules.mean_frames // 2)  # of the frames not judged yet
        self._loud = False
        self.evidence = 0
        """What the last frames in a row make up, for speech."""

    def hear(self, sequence: int, log_odds: int) -> bool:
        """Take the next frame, and judge an earlier one. Whether the state has changed."""
        rules = self._rules
        self._odds.append(min(max(log_odds, -rules.most), rules.most))
        self._sequences.append(sequence)
        total = sum(self._odds)
        loud = total > self._stop_at
        if loud != self._loud:
            self._loud, self.run_since = loud, self._sequences[0]
        self.quiet_frames = 0 if loud else self.quiet_frames + 1
        self.evidence = max(self.evidence + total - self._slack, 0) if loud else 0
        changed = self.quiet_frames == rules.stop_frames if self.speaking else self.evidence >= self.start_sum
        if changed:
            self.turn()
        return changed

    def turn(self) -> None:
        """Change the state now, from where the last frames like this one began."""
        self.speaking = not self.speaking
        self.since = self.run_since
