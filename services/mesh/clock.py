"""The clock of a process: Unix nanoseconds that never run backwards.

Timings of one frame are compared with each other, so a step of the system's clock must not fall between them: the
offset to Unix time is taken once, at import, and the rest is the monotonic clock.
"""

from __future__ import annotations

import time

from services.mesh.testhooks import clock_shift_nanos

_OFFSET_NANOS = time.time_ns() - time.monotonic_ns() + clock_shift_nanos()


def now_unix_nanos() -> int:
    """Nanoseconds since the Unix epoch."""
    return _OFFSET_NANOS + time.monotonic_ns()
