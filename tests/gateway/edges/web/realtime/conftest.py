"""The edge over a scripted desk, open to everybody or to those with a key."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.gateway.edges.web.realtime.scripted import KEY, KeyGate, Stage


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage() as stage:
        yield stage


@pytest.fixture
async def guarded() -> AsyncIterator[Stage]:
    async with Stage(KeyGate(KEY)) as stage:
        yield stage
