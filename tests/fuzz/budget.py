"""How many hostile inputs each parser gets: a fixed few in the suite, FUZZ_EXAMPLES in `make fuzz`."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.errors import DeadlineExceeded
from hypothesis.strategies import SearchStrategy

FEW = 30  # in the suite: enough to see that a parser is still what it was
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or FEW)
HANG_S = 10.0  # one input that takes longer hangs; a busy machine takes a tenth of it


@dataclass
class Tally:
    """What became of one parser's inputs."""

    tried: int = 0
    failures: int = 0
    """Inputs that ended in anything but an answer or an error of ours; a failure is tried again to be made small."""
    hangs: int = 0


tallies: dict[str, Tally] = {}


def fuzz(parser: str, share: float = 1.0, **inputs: SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Try a test on so many inputs; `share` of the budget for what is slow. The same ones each time in the suite."""
    def decorate(test: Callable[..., Any]) -> Any:
        tally = tallies.setdefault(parser, Tally())

        if inspect.iscoroutinefunction(test):
            @functools.wraps(test)
            async def counted(*args: Any, **kwargs: Any) -> None:
                tally.tried += 1
                try:
                    await test(*args, **kwargs)
                except Exception:
                    tally.failures += 1
                    raise
        else:
            @functools.wraps(test)
            def counted(*args: Any, **kwargs: Any) -> None:  # type: ignore[misc]
                tally.tried += 1
                try:
                    test(*args, **kwargs)
                except Exception as error:
                    tally.failures += 1
                    tally.hangs += isinstance(error, DeadlineExceeded)
                    raise

        bounded = settings(max_examples=max(1, round(EXAMPLES * share)), derandomize=EXAMPLES == FEW, database=None,
                           deadline=HANG_S * 1000, suppress_health_check=list(HealthCheck), print_blob=True)
        return bounded(given(**inputs)(counted))

    return decorate
