"""Audio on the path: mono float32 samples at the model's rate, cut into the model's frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.mesh.errors import InvalidRequest
from services.mesh.samples import check_samples

LONGEST_PIECE_MS = 1000  # of a caller's pieces: a longer one would be heard too late anyway

Pcm = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AudioFormat:
    """The model's rate and frame."""

    sample_rate_hertz: int
    samples_per_frame: int

    @property
    def frame_nanos(self) -> int:
        """Length of a frame."""
        return self.samples_per_frame * 1_000_000_000 // self.sample_rate_hertz

    def seconds(self, samples: int) -> float:
        """Length of so many samples."""
        return samples / self.sample_rate_hertz

    def check(self, piece: Pcm) -> None:
        """Refuse a piece of a caller's audio, float32 [samples], that the model can't take.

        Raises:
            InvalidRequest: it is empty or too long, or a sample is NaN, infinity or far too loud.
        """
        longest = self.sample_rate_hertz * LONGEST_PIECE_MS // 1000
        if not 0 < len(piece) <= longest:
            raise InvalidRequest("BAD_PCM", f"a piece must have 1 to {longest} samples ({LONGEST_PIECE_MS} ms), got "
                                 f"{len(piece)}", field="audio.pcm", accepted=f"1..{longest} samples")
        check_samples(piece, "audio.pcm")
