"""A caller against the clock: whether too little audio comes or too much at once, and whether answers are taken."""

from __future__ import annotations

import time
from collections.abc import Callable

from services.mesh.errors import SlowCaller

# A second of audio makes up for this many seconds without any. So a caller that pauses soon recovers, and one
# that sends a sample now and then to keep a slot is not.
SILENCE_FORGIVEN_PER_S = 10.0
# What a live call may bring per second, and at once. Speech comes at 1; a call that was cut off catches up, and repeats
# up to 45 s that its client has kept. Cutting more than this would cost the other callers' frames their time.
LIVE_SECONDS_PER_S = 4.0
LIVE_BURST_S = 45.0
# Pieces that any call may bring per second, and at once: speech in the smallest pieces comes at 100. A piece costs the
# gateway 0.1 ms whatever is in it: four calls that read files in pieces of 10 ms as fast as those were taken, 12 000 a
# second, put 20 % of their neighbours' frames late; the same audio in pieces of 1 s put none.
PIECES_PER_S = 400.0
PIECES_BURST = 400.0


class Pace:
    """Judges one call's pace."""

    def __init__(self, live: bool, now: Callable[[], float] = time.monotonic) -> None:
        """An offline caller may bring audio as fast as the mesh takes it, but not in any number of pieces."""
        self._live, self._now = live, now
        self._waiting = False
        self._waits_since = 0.0
        self._silence_s = 0.0  # without audio, less what audio has made up for
        self._burst_s = 0.0  # of audio, less what may come in the time since
        self._pieces = 0.0  # less what may come in the time since
        self._burst_at = now()

    def wait(self) -> None:
        """From now on the next piece may come."""
        self._waiting, self._waits_since = True, self._now()

    def came(self, seconds: float) -> None:
        """A piece of so many seconds has come; the clock stands still until `wait`."""
        now = self._now()
        self._silence_s = max(self.idle_s - SILENCE_FORGIVEN_PER_S * seconds, 0.0)
        self._waiting = False
        since_s = now - self._burst_at
        self._burst_s = max(self._burst_s - LIVE_SECONDS_PER_S * since_s, 0.0) + seconds
        self._pieces = max(self._pieces - PIECES_PER_S * since_s, 0.0) + 1
        self._burst_at = now

    def end(self) -> None:
        """The caller sends no more; the clock stands still."""
        self._waiting, self._silence_s = False, 0.0

    @property
    def idle_s(self) -> float:
        """For how long the caller has sent nothing worth its slot, though it could have."""
        return self._silence_s + (self._now() - self._waits_since if self._waiting else 0.0)

    @property
    def too_early_s(self) -> float:
        """How long the next piece must wait, so that the caller keeps to its rate."""
        pieces_s = max(self._pieces - PIECES_BURST, 0.0) / PIECES_PER_S
        return max(pieces_s, (self._burst_s - LIVE_BURST_S) / LIVE_SECONDS_PER_S) if self._live else pieces_s


class Reading:
    """Judges how fast a caller takes the answers."""

    # An offline caller may think about what it gets, at a tenth of the pace of speech; a slot is worth more than that.
    OFFLINE_FRAMES_PER_FRAME = 10

    def __init__(self, frame_s: float, live: bool, stall_s: float) -> None:
        self._allowed_s = frame_s if live else frame_s * self.OFFLINE_FRAMES_PER_FRAME
        self._stall_s, self._behind_s = stall_s, 0.0

    def took(self, seconds: float) -> None:
        """The caller has taken one more answer, so long after it was offered. Raises SlowCaller."""
        self._behind_s = max(self._behind_s + seconds - self._allowed_s, 0.0)
        if self._behind_s > self._stall_s:
            raise SlowCaller(f"answers are read {self._stall_s:.0f} s too late; read them as they come")
