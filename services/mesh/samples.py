"""What a caller may send: samples of audio, frames of codes, names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.mesh.errors import InvalidRequest

# The nominal range is -1 to 1, and floats may go over. Far beyond it, the codec's numbers overflow into NaN.
LOUDEST = 100.0
# Of 16 bit samples: what 1.0 is.
FULL_SCALE = np.float32(32768.0)


def from_s16(data: bytes) -> npt.NDArray[np.float32]:
    """16 bit samples, little endian, as float32 [samples]."""
    return np.frombuffer(data, "<i2").astype(np.float32) / FULL_SCALE


def to_s16(pcm: npt.NDArray[np.float32]) -> bytes:
    """Floats [samples] as 16 bit samples, little endian; what is too loud is clipped."""
    scaled: npt.NDArray[np.float32] = np.clip(np.rint(pcm * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
    return scaled.astype("<i2").tobytes()


def check_samples(pcm: npt.NDArray[np.float32], field: str) -> None:
    """Refuse samples [any] that the codec can't take. Raises InvalidRequest."""
    # NaN fails the comparison, too.
    if not np.abs(pcm).max() <= LOUDEST:
        raise InvalidRequest("BAD_PCM", f"samples must be between -{LOUDEST:.0f} and {LOUDEST:.0f} (nominally -1 to "
                             "1), got a louder one, infinity or NaN", field=field,
                             accepted=f"-{LOUDEST:.0f}..{LOUDEST:.0f}")


def check_frame_codes(codes: Sequence[int], codebooks: int, cardinality: int, field: str = "frame.codes") -> None:
    """Refuse a frame of codes that the model can't take."""
    if len(codes) != codebooks:
        raise InvalidRequest("BAD_CODES", f"a frame must have {codebooks} codes, got {len(codes)}",
                             field=field, accepted=codebooks)
    if max(codes) >= cardinality:
        raise InvalidRequest("BAD_CODES", f"codes must be between 0 and {cardinality - 1}, got {max(codes)}",
                             field=field, accepted=f"0..{cardinality - 1}")


def check_session_id(session_id: str) -> str:
    """Refuse an id that can't be used in a log line or a key."""
    if not 1 <= len(session_id) <= 128 or not session_id.isprintable():
        raise InvalidRequest("BAD_SESSION_ID", "session_id must have 1 to 128 printable characters, got "
                             f"{len(session_id)}", field="config.session_id")
    return session_id
