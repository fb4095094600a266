"""What samples of audio may be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.mesh.errors import InvalidRequest

# The nominal range is -1 to 1, and floats may go over. Far beyond it, the codec's numbers overflow into NaN.
LOUDEST = 100.0


def check_samples(pcm: npt.NDArray[np.float32], field: str) -> None:
    """Refuse samples [any] that the codec can't take. Raises InvalidRequest."""
    # NaN fails the comparison, too.
    if not np.abs(pcm).max() <= LOUDEST:
        raise InvalidRequest("BAD_PCM", f"samples must be between -{LOUDEST:.0f} and {LOUDEST:.0f} (nominally -1 to "
                             "1), got a louder one, infinity or NaN", field=field,
                             accepted=f"-{LOUDEST:.0f}..{LOUDEST:.0f}")
