"""Node, for callers in another language."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.npm import node_with_packages

STUBS = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def node() -> str:
    """The node executable, with the client's packages in tests/stubs/node_modules."""
    return node_with_packages(STUBS)
