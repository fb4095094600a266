"""The stand-in for somebody at Moshi's own client."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.local_mesh import ROOT
from tests.gateway.edges.sounds import speech
from tests.gateway.edges.web.echo import RATE, EchoDesk
from tests.gateway.edges.web.test_chat import chat

# A shell without job control starts what is in the background with its Ctrl-C ignored, and so does this.
IN_THE_BACKGROUND = ("import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
                     "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])")


@pytest.mark.slow
async def test_it_hangs_up_also_where_ctrl_c_is_ignored(tmp_path: Path) -> None:
    said, heard = tmp_path / "said.npy", tmp_path / "heard.npy"
    np.save(said, speech(RATE, 0.4).astype(np.float32))
    async with chat(EchoDesk()) as door:  # it would answer without end
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", IN_THE_BACKGROUND, "-m", "harness.moshi_client", str(said), str(heard), "--url",
            door.url, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
        try:
            assert await asyncio.wait_for(client.wait(), 60) == 0
        finally:
            if client.returncode is None:
                client.send_signal(signal.SIGKILL)
                await client.wait()
    assert np.abs(np.load(heard)).max() > 0.001
