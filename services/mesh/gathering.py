"""When frames of many calls should come to the encoder together, and how long it waits for them.

A step of many frames costs little more than a step of few, and frames that are encoded together travel together
through all later stages. Two things serve that, measured in docs/decisions.md: callers that can choose when
their frames are complete are asked for one of a few phases, and before a step the encoder waits for the frames that are
due.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# Moments of a frame's time that callers are asked for. With one, every step is as large as can be, and every stage
# works while the others idle; with two, one half is encoded while the other is decoded.
PHASES = 2
# How long a step waits for others: a single session must not wait, and none waits for long.
WAIT_S_PER_SESSION = 0.0005
LONGEST_WAIT_S = 0.010
# Frames come one frame's time after each other, but may be this much late, by the event loops on their way.
LATE_S = 0.002


@dataclass(frozen=True)
class Gathering:
    """What is known of the pace of sessions: a frame of theirs comes every `frame_nanos`."""

    frame_nanos: int

    def least_taken(self, taken: Iterable[int]) -> int:
        """The phase to ask a new session for, in nanoseconds of Unix time modulo a frame.

        `taken` has the phases that the other sessions were asked for.
        """
        sessions = Counter(taken)
        return min((phase * self.frame_nanos // PHASES for phase in range(PHASES)), key=lambda phase: sessions[phase])

    def wait_s(self, now_unix_nanos: int, sessions: int, last_unix_nanos: Iterable[int]) -> float:
        """How long to wait for the last of the frames that are due soon; 0 when none is.

        `sessions` is how many sessions there are. `last_unix_nanos` has, for each session that has no frame here now,
        when its last one came.
        """
        longest = round(min(WAIT_S_PER_SESSION * sessions, LONGEST_WAIT_S) * 1e9)
        late = round(LATE_S * 1e9)
        due = max((away for last in last_unix_nanos
                   if -late < (away := last + self.frame_nanos - now_unix_nanos) < longest), default=None)
        return 0.0 if due is None else min(due + late, longest) / 1e9
