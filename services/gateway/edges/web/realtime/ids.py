"""Names of what a session makes: events, items, responses."""

from __future__ import annotations

import itertools
import secrets


class Ids:
    """Ids that no other session gives: clients keep items when they connect again, and would mix them up."""

    def __init__(self) -> None:
        self._tag = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    def new(self, kind: str) -> str:
        """The next id, such as item_8f0c22d1a9b3e4f5_12."""
        return f"{kind}_{self._tag}_{next(self._numbers)}"
