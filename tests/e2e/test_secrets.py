"""A whole call through real processes that log all they can: no secret of it is left anywhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import redis
from moshimesh import connect
from moshimesh.events import Ready, Speech

from harness.intruders import Intruders
from harness.issuer import token
from harness.local_mesh import LocalMesh
from harness.receiver import receiving
from harness.secrets_scan import of_processes, of_redis, secrets_found
from tests.until import until

SAID = np.zeros(24_000 * 2, np.int16)


@pytest.mark.slow
async def test_no_secret_of_a_call_is_left_in_logs_spans_metrics_redis_or_ps(tmp_path: Path) -> None:
    lines: list[str] = []
    async with Intruders(tmp_path) as ours, receiving() as receiver:
        environment = {"MOSHIMESH_LOG_LEVEL": "debug", "MOSHIMESH_LOG_FORMAT": "json",
                       "MOSHIMESH_OTLP_ENDPOINT": receiver.endpoint, "MOSHIMESH_TRACE_ONE_IN": "1"}
        flags = [*ours.flags, "--calls-per-key", "5", "--audio-s-per-hour-per-key", "600"]
        async with LocalMesh(environment=environment, gateway_flags=flags, metrics=True,
                             on_line=lambda name, line: lines.append(line)) as mesh:
            shown = {"the key": ours.key, "the token": token(), "a wrong key": ours.key[:-4] + "AAAA"}
            async with aiohttp.ClientSession() as http, connect(mesh.target) as client:
                async with http.post(f"{mesh.url}/api/tickets", headers={"X-Api-Key": ours.key}) as answer:
                    shown["the ticket"] = (await answer.json())["ticket"]
                with pytest.raises(Exception, match="API key"):
                    await client.info(api_key=shown["a wrong key"])
                for name in ("the key", "the token", "the ticket"):
                    answers = 0
                    async for event in client.converse(SAID, pacing="offline", api_key=shown[name]):
                        if isinstance(event, Ready):
                            shown[f"the handle of {name}"] = event.resume_handle
                        answers += isinstance(event, Speech)
                    assert answers
                async with http.get(f"http://localhost:{mesh.metrics_ports['gateway']}/metrics") as answer:
                    metrics = await answer.text()
            with redis.Redis.from_url(mesh.redis_url) as store:
                kept = await asyncio.to_thread(of_redis, store)
            pids = [process.child.pid for process in mesh.processes.values() if process.child is not None]
            arguments = of_processes(pids)
            await until(lambda: sum(span.name == "session" for span in receiver.spans) == 3, 30)
        spans = "\n".join(map(repr, receiver.spans))
    log = "\n".join(lines)
    places = {"the log": log, "spans": spans, "metrics": metrics, "Redis": kept, "ps": arguments}
    assert '"level": "debug"' in log and "'moshimesh.key_id': 'shop'" in spans and b"shop" in kept
    assert all(places.values()) and len(shown) == 7
    assert secrets_found(shown, places) == []
