"""How a call ended, in one word: for its session, its trace and its metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from services.mesh.errors import CallTooLong, MeshError

COMPLETED, CANCELLED = "completed", "cancelled"


def reason_of(error: BaseException) -> str:
    """The reason of an error that ended a call; CANCELLED when the caller has hung up."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return CANCELLED
    return error.reason if isinstance(error, MeshError) else MeshError.reason


def call_too_long(longest_call_s: float) -> CallTooLong:
    """The error of a call that has lasted as long as a call may."""
    return CallTooLong(f"a call may last {longest_call_s:.0f} s here; open a new one")


@contextlib.contextmanager
def reported(end: Callable[[str], None]) -> Iterator[None]:
    """Tell `end` how the block ended: COMPLETED, CANCELLED, or an error's reason."""
    reason = COMPLETED
    try:
        yield
    except BaseException as error:
        reason = reason_of(error)
        raise
    finally:
        end(reason)
