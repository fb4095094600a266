"""A gateway's real command, which computes events or, after each SIGUSR2, does not, or does again."""

from __future__ import annotations

import runpy
import signal

from services.gateway.turns.detector import Detector

if __name__ == "__main__":
    steps = [lambda *_: [], Detector.step]

    def switch(*_: object) -> None:
        """Between the two."""
        Detector.step = steps[0]  # type: ignore[method-assign,assignment]
        steps.reverse()

    signal.signal(signal.SIGUSR2, switch)
    runpy.run_module("services.gateway", run_name="__main__")
