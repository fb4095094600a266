"""Strangers at codec and lm, with real processes."""

from __future__ import annotations

import pytest

from harness.peer_intruders import ROLES, tried_at_peers


@pytest.mark.slow
async def test_nobody_without_a_certificate_of_the_mesh_gets_in_at_codec_and_lm() -> None:
    refused = await tried_at_peers()
    assert all(refused.values()), refused
    assert len(refused) == len(ROLES) * 4
