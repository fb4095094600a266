"""What a call is like for the caller: jitter of its audio, holes that a player hears, and the opinion score of both."""

from __future__ import annotations

# An answer that comes later than this after it should be played leaves a hole: two frames, what a listener
# forgives and what players buffer.
PLAYOUT_BUFFER_S = 0.160


class Jitter:
    """Interarrival jitter of RFC 3550, section 6.4.1 and A.8 (https://www.rfc-editor.org/rfc/rfc3550#appendix-A.8).

    A caller's piece of audio is the packet. It can leave only when its last sample was heard, so its timestamp is its
    end; for pieces of one size, as RTP has them, that is the same.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._transit: float | None = None
        self._heard = 0.0

    def arrived(self, at: float, seconds: float) -> None:
        """One more piece of audio, and when it came (any clock in seconds)."""
        self._heard += seconds
        transit = at - self._heard
        if self._transit is not None:
            self.seconds += (abs(transit - self._transit) - self.seconds) / 16
        self._transit = transit


class Playout:
    """A player that starts when PLAYOUT_BUFFER_S are there, and waits for as much again when it has run dry."""

    def __init__(self, frame_s: float) -> None:
        self.underruns = 0
        self._frame_s = frame_s
        self._due: float | None = None  # when the next answer must be there

    def answered(self, at: float) -> None:
        """One more answer, and when it came."""
        if self._due is None:
            self._due = at + PLAYOUT_BUFFER_S
        elif at > self._due:
            self.underruns += 1
            self._due = at + PLAYOUT_BUFFER_S
        self._due += self._frame_s


def mos(delay_s: float, jitter_s: float, loss: float) -> float:
    """Estimated mean opinion score, 1 to 4.5, by the E-model: ITU-T G.107 with its default values, simplified.

    `delay_s` is the mesh's, `loss` the share of frames that were not heard in time. The delay's impairment is the
    approximation of Cole and Rosenbluth, "Voice over IP performance monitoring" (2001), with twice the jitter added for
    the buffer that has to hide it. The loss's is Ie,eff of G.107 (06/2015) 7-29 with Bpl = 4.3 and random losses, the
    value of G.113 for a codec without concealment. Of the codec itself nothing is taken off (Ie = 0): this is what the
    mesh does to a call, not how Mimi sounds, nor what Moshi says.
    """
    delay_ms = (delay_s + 2 * jitter_s) * 1000
    delay_impairment = 0.024 * delay_ms + 0.11 * max(delay_ms - 177.3, 0.0)
    loss_impairment = 95 * (loss * 100) / (loss * 100 + 4.3)
    rating = min(max(93.2 - delay_impairment - loss_impairment, 0.0), 100.0)
    return max(1 + 0.035 * rating + rating * (rating - 60) * (100 - rating) * 7e-6, 1.0)  # annex B of G.107
