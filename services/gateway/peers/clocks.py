"""How far another process's clock is ahead of ours, from the frames that it has answered.

As NTP does it (https://www.rfc-editor.org/rfc/rfc5905, section 8): a frame left here at `sent`, was `received` and
`finished` there, and was back at `returned`. It can't have arrived before it left, nor come back before it was
finished, so the offset lies between finished - returned and received - sent. Each frame gives both bounds, and the
quickest frames of some seconds give the closest ones; the offset is taken to be in the middle.
"""

from __future__ import annotations

from moshimesh.audio.v1 import audio_pb2

from services.mesh.clock import now_unix_nanos

WINDOW_NANOS = 5_000_000_000
"""Bounds are drawn from the last one to two windows: long enough for quick frames even under load, and so short that
clocks whose rates differ by 100 ppm move apart by 1 ms at most."""
TRUSTED_NANOS = 2_000_000
"""An offset that may be wrong by more than this is flagged."""

_FAR = 1 << 62


class PeerClock:
    """The clock of one replica."""

    def __init__(self) -> None:
        self._low, self._high = -_FAR, _FAR  # of this window
        self._low_before, self._high_before = -_FAR, _FAR
        self._until = 0

    def stamp(self, context: audio_pb2.FrameContext, sent_unix_nanos: int) -> None:
        """Note on an answer's last hop when the frame was sent there and that it is back now, and learn from it."""
        hops = context.hops
        if hops:  # the contract lets a hop leave out its timing
            hop, returned_unix_nanos = hops[-1], now_unix_nanos()
            hop.sent_unix_nanos, hop.returned_unix_nanos = sent_unix_nanos, returned_unix_nanos
            self.add(sent_unix_nanos, hop.received_unix_nanos, hop.finished_unix_nanos, returned_unix_nanos)

    def add(self, sent_unix_nanos: int, received_unix_nanos: int, finished_unix_nanos: int,
            returned_unix_nanos: int) -> None:
        """A frame has been there; `sent_unix_nanos` and `returned_unix_nanos` by our clock, the others by theirs."""
        if returned_unix_nanos > self._until:
            self._low_before, self._high_before = self._low, self._high
            self._low, self._high = -_FAR, _FAR
            self._until = returned_unix_nanos + WINDOW_NANOS
        low, high = finished_unix_nanos - returned_unix_nanos, received_unix_nanos - sent_unix_nanos
        if low > self._low:
            self._low = low
        if high < self._high:
            self._high = high

    def offset(self) -> tuple[int, bool]:
        """Nanoseconds by which it is ahead, and whether that is uncertain.

        0 where the clocks agree as far as one can tell: those of one machine need no correction that is not one.
        """
        low, high = max(self._low, self._low_before), min(self._high, self._high_before)
        if low > high:  # another process has come in its place, with another clock
            low, high = self._low, self._high
        uncertain = not 0 <= high - low <= 2 * TRUSTED_NANOS
        return (0 if low <= 0 <= high else (low + high) // 2), uncertain
