"""When somebody speaks: a decision for each frame, with hysteresis."""

from __future__ import annotations


class Activity:
    """One speaker. Speech begins with the first of `start_frames` frames of it in a row, and ends with the first of
    `stop_frames` without.
    """

    def __init__(self, start_frames: int, stop_frames: int) -> None:
        self.speaking = False
        self.since = 0
        """The caller's number of the frame at which the present state began."""
        self.quiet_frames = 0
        """How many of the last frames were without speech."""
        self._start_frames, self._stop_frames = start_frames, stop_frames
        self._run = 0  # frames in a row that speak against the present state
        self._run_since = 0

    def hear(self, sequence: int, is_speech: bool) -> bool:
        """Take the next frame. Whether the state has changed."""
        self.quiet_frames = 0 if is_speech else self.quiet_frames + 1
        if is_speech == self.speaking:
            self._run = 0
            return False
        if not self._run:
            self._run_since = sequence
        self._run += 1
        if self._run < (self._stop_frames if self.speaking else self._start_frames):
            return False
        self.turn()
        return True

    def turn(self) -> None:
        """Change the state now, from where the frames that speak against it began."""
        self.speaking = not self.speaking
        self.since, self._run = self._run_since, 0
