"""Whether the log has called something our own bug."""

from __future__ import annotations

import logging


class Faults(logging.Handler):
    """What the log calls our own bug: an INTERNAL status that the edge has caught."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))
