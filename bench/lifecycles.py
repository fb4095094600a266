"""Thousands of random calls, none of which may leak a slot.

    python -m bench.lifecycles --count 10000

Two gateways and two replicas of each service with null engines, as real processes. Callers come, talk, hang up, send
nonsense, lose their connection, and resume their calls, in an order that a seed decides; now and then a process
is killed and started again. Whenever there is no call, no slot may be held anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc
from moshimesh.codec.v1 import codec_pb2, codec_pb2_grpc
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc
from rich.progress import Progress

from harness.null_mesh import NullMesh

SLOTS = 12  # of each replica: fewer than callers, so that some have to wait in line
CALLERS_AT_ONCE = 32
BETWEEN_CHECKS = 500
PATIENCE_S = 60.0
SETTLE_S = 5.0  # for the last slot to come back
FRAME = bytes(1920 * 4)

Stub = conversation_pb2_grpc.ConversationServiceStub
Request, Response = conversation_pb2.ConverseRequest, conversation_pb2.ConverseResponse


def config(**fields: object) -> Request:
    return Request(config=conversation_pb2.ConverseConfig(
        **{"sample_rate_hertz": 24_000, "pacing": conversation_pb2.PACING_OFFLINE} | fields))  # type: ignore[arg-type]


def audio(pcm: bytes = FRAME) -> Request:
    return Request(audio=conversation_pb2.AudioChunk(pcm=pcm))


class Caller:
    """One caller's bag of tricks. Each trick is one lifecycle of a session."""

    def __init__(self, rng: random.Random, stub: Stub) -> None:
        self._rng, self._stub = rng, stub

    async def behave(self) -> str:
        """Do something at random; its name."""
        trick = self._rng.choice((self.talks, self.talks, self.hangs_up, self.hangs_up_at_once, self.says_nothing,
                                  self.sends_nonsense, self.asks_for_nonsense, self.does_not_read, self.comes_back,
                                  self.fights_itself))
        # Killed gateways, full lines; the last one is a write into a call that the mesh has ended.
        with contextlib.suppress(asyncio.CancelledError, asyncio.InvalidStateError):
            try:
                await asyncio.wait_for(trick(), PATIENCE_S)
            except grpc.aio.AioRpcError as error:
                if "log has the details" in (error.details() or ""):
                    raise AssertionError(f"{trick.__name__}: {error.details()}") from None
        return trick.__name__

    async def talks(self) -> None:
        await self._say(self._stub.Converse(), config(), self._rng.randrange(8))

    async def hangs_up(self) -> None:
        call = self._stub.Converse()
        await call.write(config())
        for _ in range(self._rng.randrange(5)):
            await call.write(audio())
            await call.read()
        call.cancel()

    async def hangs_up_at_once(self) -> None:
        call = self._stub.Converse()
        await call.write(config())
        await asyncio.sleep(self._rng.random() * 0.01)
        call.cancel()

    async def says_nothing(self) -> None:
        call = self._stub.Converse()
        await asyncio.sleep(self._rng.random() * 0.01)
        call.cancel()

    async def sends_nonsense(self) -> None:
        call = self._stub.Converse()
        await call.write(config())
        await self._ready(call)
        await call.write(self._rng.choice((audio(b"\1"), audio(b""), Request(), config())))
        while await call.read() is not grpc.aio.EOF:
            pass

    async def asks_for_nonsense(self) -> None:
        call = self._stub.Converse()
        await call.write(self._rng.choice((
            audio(), config(sample_rate_hertz=8001), config(resume_handle="nonsense"), config(first_sequence=3),
            config(encoding=99), config(sampling=lm_pb2.Sampling(text_temperature=99)))))
        await call.read()

    async def does_not_read(self) -> None:
        call = self._stub.Converse()
        await call.write(config())
        for _ in range(10):
            await call.write(audio())
        await asyncio.sleep(self._rng.random() * 0.1)
        call.cancel()

    async def comes_back(self) -> None:
        call = self._stub.Converse()
        await call.write(config())
        ready = await self._ready(call)
        for _ in range(self._rng.randrange(6)):
            await call.write(audio())
        await asyncio.sleep(self._rng.random() * 0.2)
        call.cancel()
        await self._say(self._stub.Converse(), config(resume_handle=ready.resume_handle), self._rng.randrange(4))

    async def fights_itself(self) -> None:
        call = self._stub.Converse()
        await call.write(config())
        ready = await self._ready(call)
        await asyncio.sleep(0.15)
        others = [self._stub.Converse() for _ in range(2)]
        for other in others:
            await other.write(config(resume_handle=ready.resume_handle))
        await asyncio.sleep(self._rng.random() * 0.1)
        for one in (call, *others):
            one.cancel()

    async def _say(self, call: grpc.aio.StreamStreamCall, opening: Request, frames: int) -> None:
        await call.write(opening)
        await self._ready(call)
        for _ in range(frames):
            await call.write(audio())
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass

    async def _ready(self, call: grpc.aio.StreamStreamCall) -> conversation_pb2.ConverseReady:
        while (response := await call.read()) is not grpc.aio.EOF and response.WhichOneof("response") != "ready":
            pass  # waiting in line
        if response is grpc.aio.EOF:
            raise asyncio.InvalidStateError("the mesh has refused the call")
        return response.ready


async def held(mesh: NullMesh) -> dict[str, int]:
    """Slots that are held, by process and kind."""
    taken = {}
    for name, port in mesh.ports.items():
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            if name.startswith("codec"):
                codec = await codec_pb2_grpc.CodecServiceStub(channel).GetInfo(codec_pb2.GetInfoRequest())
                taken[f"{name} encoder"] = codec.encode_slots_total - codec.encode_slots_free
                taken[f"{name} decoder"] = codec.decode_slots_total - codec.decode_slots_free
            elif name.startswith("lm"):
                lm = await lm_pb2_grpc.LmServiceStub(channel).GetInfo(lm_pb2.GetInfoRequest())
                taken[name] = lm.slots_total - lm.slots_free
    return taken


async def none_held(mesh: NullMesh) -> None:
    """Raises AssertionError when a slot is still held after SETTLE_S."""
    deadline = time.monotonic() + SETTLE_S
    while any((taken := await held(mesh)).values()):
        if time.monotonic() > deadline:
            raise AssertionError(f"nobody calls, and yet slots are held: {taken}")
        await asyncio.sleep(0.05)


async def kill_something(mesh: NullMesh, rng: random.Random) -> None:
    """A process is killed, or drains, and then starts again."""
    name = rng.choice([name for name in mesh.ports if not name.startswith("lm")])
    mesh.processes[name].send(rng.choice((signal.SIGKILL, signal.SIGTERM)))
    child = mesh.processes[name].child
    assert child is not None
    await child.wait()
    await mesh.start_replica(name)
    for again in (name, name.replace("codec", "lm")):
        await mesh.wait_ready(again, mesh.ports[again])


async def run(count: int, seed: int, on_progress: Callable[[int], None] = lambda done: None,
              kills: bool = True) -> Counter[str]:
    """Live through `count` sessions. Raises AssertionError for a slot that leaks; how often which trick was done."""
    rng = random.Random(seed)
    tricks: Counter[str] = Counter()
    async with NullMesh(slots=SLOTS, replicas=2, environment={"MOSHIMESH_IDLE_S": "10", "MOSHIMESH_DRAIN_S": "5"}
                        ) as mesh:
        addresses = mesh.addresses("gateway").split(",")
        channels = [grpc.aio.insecure_channel(address) for address in addresses]
        stubs = [Stub(channel) for channel in channels]
        left = count

        async def live(caller: Caller, until: int) -> None:
            nonlocal left
            while left > until:
                left -= 1
                tricks[await caller.behave()] += 1
                on_progress(1)

        try:
            while left:
                until = max(left - BETWEEN_CHECKS, 0)
                callers = [live(Caller(random.Random(rng.random()), rng.choice(stubs)), until)
                           for _ in range(CALLERS_AT_ONCE)]
                killing: Awaitable[None] = kill_something(mesh, rng) if kills else asyncio.sleep(0)
                await asyncio.gather(*callers, killing)
                await none_held(mesh)
        finally:
            for channel in channels:
                await channel.close()
    return tricks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with Progress() as progress:
        task = progress.add_task("sessions", total=options.count)
        tricks = asyncio.run(run(options.count, options.seed, lambda done: progress.advance(task, done)))
    print(f"{options.count} sessions, no slot leaked: {dict(tricks)}")


if __name__ == "__main__":
    main()
