"""Whole calls through real processes that log all they can, and whether a secret of them is left anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path

import aiohttp
import moshimesh
import numpy as np
import redis

from harness import door_calls, pcm_client
from harness.intruders import Intruders
from harness.issuer import token
from harness.local_mesh import LocalMesh
from harness.receiver import Receiver, receiving
from harness.recordings import read_recording
from harness.secrets_scan import SHORTEST, of_processes, of_redis, secrets_found

SPEECH = Path(__file__).resolve().parent.parent / "samples" / "demo.wav"
SAID = np.frombuffer(read_recording(SPEECH), np.int16)
PIECE = slice(96_000, 96_064)  # bytes of sound that are looked for
TOKENS = 12  # so many in a row, too
SPANS_S = 30.0  # until the last session's span must have come


async def leaks(folder: Path) -> list[str]:
    """Where a key, a token, a ticket, a handle, a grant, or what was said or heard in three calls over gRPC and one at
    each WebSocket is found: logs at debug, spans, metrics, Redis, ps, and what the gateway prints when it crashes in a
    call.

    Raises AssertionError when one of these places says nothing of the calls: then finding nothing proves nothing.
    """
    lines: list[str] = []
    async with Intruders(folder) as ours, receiving() as receiver:
        environment = {"MOSHIMESH_LOG_LEVEL": "debug", "MOSHIMESH_LOG_FORMAT": "json",
                       "MOSHIMESH_OTLP_ENDPOINT": receiver.endpoint, "MOSHIMESH_TRACE_ONE_IN": "1",
                       "PYTHONFAULTHANDLER": "1"}
        flags = [*ours.flags, "--calls-per-key", "8", "--audio-s-per-hour-per-key", "600"]
        async with LocalMesh(environment=environment, gateway_flags=flags, metrics=True,
                             on_line=lambda name, line: lines.append(line)) as mesh:
            shown = await _calls(mesh, ours)
            async with aiohttp.ClientSession() as http, http.get(
                    f"http://localhost:{mesh.metrics_ports['gateway']}/metrics") as answer:
                metrics = await answer.text()
            with redis.Redis.from_url(mesh.redis_url) as store:
                kept = await asyncio.to_thread(of_redis, store)
            pids = [process.child.pid for process in mesh.processes.values() if process.child is not None]
            arguments = of_processes(pids)
            await _sessions_traced(receiver, 7)
            await _crashed(mesh, ours)
        spans = "\n".join(map(repr, receiver.spans))
    log = "\n".join(lines)
    places = {"the log": log, "spans": spans, "metrics": metrics, "Redis": kept, "ps": arguments}
    assert '"level": "debug"' in log and "'moshimesh.key_id': 'shop'" in spans and b"shop" in kept
    assert "Fatal Python error" in log and all(places.values()) and len(shown) > 20
    assert shown.keys() >= {"the handle of chat", "the Opus of chat", "the sound of Realtime", "the sound of Live"}
    return secrets_found(shown, places)


async def _crashed(mesh: LocalMesh, ours: Intruders) -> None:
    """The gateway is ended by a signal in the middle of a call, and prints where it was."""
    gateway = mesh.processes["gateway"]
    call = asyncio.create_task(pcm_client.hold(mesh.url, SAID / np.float32(32768), headers={"X-Api-Key": ours.key},
                                               pacing="live"))
    await asyncio.sleep(1.0)
    gateway.send(signal.SIGABRT)
    with contextlib.suppress(aiohttp.ClientError):
        await call
    await gateway.stop()  # reads what it printed to its end


async def _calls(mesh: LocalMesh, ours: Intruders) -> dict[str, str | bytes]:
    """Calls with each kind of credential; everything secret in them, by name."""
    shown: dict[str, str | bytes] = {"what the caller said": SAID.tobytes()[PIECE]}
    shown |= {"the key": ours.key, "the token": token(), "a wrong key": ours.key[:-4] + "AAAA"}
    async with aiohttp.ClientSession() as http, moshimesh.connect(mesh.target) as client:
        async with http.post(f"{mesh.url}/api/tickets", headers={"X-Api-Key": ours.key}) as answer:
            shown["the ticket"] = (await answer.json())["ticket"]
        try:
            await client.info(api_key=str(shown["a wrong key"]))
        except moshimesh.MeshError as error:
            assert error.code.name == "UNAUTHENTICATED", error
        for name in ("the key", "the token", "the ticket"):
            codes: list[int] = []
            async for event in client.converse(SAID, pacing="offline", api_key=str(shown[name])):
                if isinstance(event, moshimesh.Ready):
                    shown[f"the handle of {name}"] = event.resume_handle
                    shown[f"the grant of {name}"] = grant = await client.grant(
                        event.resume_handle, api_key=ours.key)
                    listening = client.listen(grant, api_key=ours.key)
                    await anext(listening)
                elif isinstance(event, moshimesh.Speech):
                    codes += event.codes
            await listening.aclose()
            # As a journal has them, and as a line or a span would.
            shown[f"the tokens of {name}"] = np.array(codes[-TOKENS:], "<u2").tobytes()
            shown[f"the printed tokens of {name}"] = ", ".join(map(str, codes[-TOKENS:]))
    held = await pcm_client.hold(mesh.url, SAID / np.float32(32768), headers={"X-Api-Key": ours.key})
    shown["the handle of a WebSocket"] = held.ready["resume_handle"]
    shown["what the model said"], shown["its sound"] = held.text, b"".join(held.audio)[PIECE]
    pcm = SAID / np.float32(32768)
    credentials = [await _ticket(mesh.url, ours.key, path) for path in (
        "/api/tickets", "/v1/realtime/client_secrets", "/api/tickets")]
    for found in await asyncio.gather(*(call(mesh.url, pcm, credential) for call, credential in zip(
            (door_calls.chat, door_calls.realtime, door_calls.live), credentials, strict=True))):
        # A model that says little says nothing that could be told from chance.
        shown |= {name: secret for name, secret in found.items() if len(secret) >= 2 * SHORTEST}
    return shown


async def _ticket(url: str, key: str, path: str) -> str:
    async with aiohttp.ClientSession() as http, http.post(f"{url}{path}", headers={"X-Api-Key": key}) as answer:
        told = await answer.json()
    return str(told.get("ticket") or told["value"])


async def _sessions_traced(receiver: Receiver, sessions: int) -> None:
    deadline = time.monotonic() + SPANS_S
    while sum(span.name == "session" for span in receiver.spans) < sessions:
        if time.monotonic() > deadline:
            raise TimeoutError("the sessions' spans did not come")
        await asyncio.sleep(0.1)
