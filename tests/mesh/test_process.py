"""A service as a process has it: its health, its reflection, its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc

from services.mesh import logs, process
from services.mesh.config import ServiceConfig
from services.mesh.errors import SlowCaller
from services.mesh.incoming import Incoming, Sender
from services.mesh.introspection import MOST_REFLECTIONS, MOST_WATCHES, Reflection
from services.mesh.process import MeshServer
from services.mesh.serving import Service
from services.mesh.transport import CALLER_OPTIONS
from tests.until import until

DESCRIPTOR = lm_pb2.DESCRIPTOR.services_by_name["LmService"]


class Waiting:
    """A service whose calls are ready at once and then never end by themselves."""

    def __init__(self) -> None:
        self.services = (Service(DESCRIPTOR, {"GetInfo": self.get_info, "Step": self.step}, stall_s=5.0),)
        self.running, self.closed = 0, False

    async def get_info(self, request: lm_pb2.GetInfoRequest, sender: Sender) -> lm_pb2.GetInfoResponse:
        return lm_pb2.GetInfoResponse()

    async def step(self, requests: Incoming[lm_pb2.StepRequest]) -> AsyncGenerator[lm_pb2.StepResponse, None]:
        self.running += 1
        try:
            yield lm_pb2.StepResponse(ready=lm_pb2.StepReady())
            await asyncio.Event().wait()
        finally:
            self.running -= 1

    def drain(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
async def served() -> AsyncIterator[tuple[Waiting, MeshServer]]:
    waiting = Waiting()
    server = MeshServer(ServiceConfig(host="127.0.0.1"), "test")
    await server.start(waiting)
    yield waiting, server
    gc.unfreeze()
    await server.stop(0)


async def test_what_is_loaded_is_not_looked_through_again() -> None:
    loaded = [[number] for number in range(1000)]
    server = MeshServer(ServiceConfig(host="127.0.0.1"), "test")
    await server.start(Waiting())
    try:
        looked_through = {id(one) for one in gc.get_objects()}
        assert gc.get_freeze_count() > len(loaded)
        assert not any(id(one) in looked_through for one in loaded)
    finally:
        gc.unfreeze()
        await server.stop(0)


class Hatch:
    """A door with one call, which ends when it is told to; after that it is broken."""

    def __init__(self, waiting: Waiting) -> None:
        self.call_ends = asyncio.Event()
        self.told: list[str] = []
        self._waiting = waiting

    async def open(self) -> None:
        self.told.append("opened")

    async def close(self) -> None:
        self.told.append("closing")
        try:
            await self.call_ends.wait()
        finally:
            self.told.append(f"the last call has ended, {'after' if self._waiting.closed else 'before'} the service")
        raise ValueError("a door's bug")


@pytest.mark.parametrize("call_ends", [True, False], ids=["by itself", "when the grace is over"])
async def test_a_door_closes_before_what_it_leads_to(call_ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FAREWELL_S", 60.0 if call_ends else 0.1)
    waiting = Waiting()
    hatch = Hatch(waiting)
    server = MeshServer(ServiceConfig(host="127.0.0.1"), "test")
    await server.start(waiting, doors=[hatch])
    gc.unfreeze()
    assert hatch.told == ["opened"]
    stopping = asyncio.create_task(server.stop(0))
    await until(lambda: "closing" in hatch.told)
    if call_ends:
        assert not waiting.closed
        hatch.call_ends.set()
    await stopping
    assert hatch.told[2:] == ["the last call has ended, before the service"] and waiting.closed


class Shut:
    """A door whose port is somebody else's."""

    async def open(self) -> None:
        raise SystemExit("choose another port")

    async def close(self) -> None:
        raise AssertionError("it was never open")


async def test_a_door_that_can_t_open_leaves_no_server() -> None:
    server = MeshServer(ServiceConfig(host="127.0.0.1"), "test")
    with pytest.raises(SystemExit):
        await server.start(Waiting(), doors=[Shut()])
    async with grpc.aio.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


class Leaving(Waiting):
    """A handler that has something to write when its caller has left."""

    def __init__(self) -> None:
        super().__init__()
        self.happened: list[str] = []

    async def step(self, requests: Incoming[lm_pb2.StepRequest]) -> AsyncGenerator[lm_pb2.StepResponse, None]:
        try:
            yield lm_pb2.StepResponse(ready=lm_pb2.StepReady())
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.3)
            self.happened.append("said")

    async def close(self) -> None:
        self.happened.append("closed")


async def test_a_service_is_closed_after_its_last_handler_has_ended() -> None:
    """Else what a handler says in the end, such as its session's span, comes to a sender that has stopped."""
    server, leaving = MeshServer(ServiceConfig(host="127.0.0.1"), "test"), Leaving()
    await server.start(leaving)
    gc.unfreeze()
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = lm_pb2_grpc.LmServiceStub(channel).Step()
        await call.read()
        call.cancel()
        await server.stop(5)
    assert leaving.happened == ["said", "closed"]


async def test_reflection_lists_and_describes_the_services(served) -> None:
    _, server = served

    def ask() -> None:
        with grpc.insecure_channel(server.address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert {"moshimesh.lm.v1.LmService", "grpc.health.v1.Health"} <= set(database.get_services())
            described = database.FindFileContainingSymbol("moshimesh.lm.v1.LmService")
            assert [method.name for service in described.service for method in service.method] == ["GetInfo", "Step"]

    await asyncio.to_thread(ask)


async def test_health_is_said_by_name_and_of_all(served) -> None:
    _, server = served
    async with grpc.aio.insecure_channel(server.address) as channel:
        for name in ("", "moshimesh.lm.v1.LmService"):
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_follows_how_the_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.mesh.process.HEALTH_S", 0.02)
    state = {"alive": True, "ready": True}
    server = MeshServer(ServiceConfig(host="127.0.0.1"), "test")
    await server.start(Waiting(), alive=lambda: state["alive"], ready=lambda: state["ready"])
    gc.unfreeze()

    async def says(alive: bool, ready: bool) -> None:
        for name, good in (("", alive), ("moshimesh.lm.v1.LmService", ready)):
            expected = health_pb2.HealthCheckResponse.SERVING if good else health_pb2.HealthCheckResponse.NOT_SERVING
            async for answer in health_pb2_grpc.HealthStub(channel).Watch(
                    health_pb2.HealthCheckRequest(service=name), timeout=10):
                if answer.status == expected:
                    break

    async with grpc.aio.insecure_channel(server.address) as channel:
        for alive, ready in ((True, True), (True, False), (True, True), (False, True)):
            state.update(alive=alive, ready=ready)
            await says(alive, alive and ready)
    await server.stop(0)


async def test_calls_that_outlast_a_drain_are_ended_with_a_reason() -> None:
    waiting = Waiting()
    server = MeshServer(ServiceConfig(host="127.0.0.1"), "test")
    await server.start(waiting)
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = lm_pb2_grpc.LmServiceStub(channel).Step()
        await call.read()
        stopping = asyncio.create_task(server.stop(0.1))
        with pytest.raises(grpc.aio.AioRpcError, match="test stops now"):
            await call.read()
        assert await call.code() == grpc.StatusCode.UNAVAILABLE
        await stopping
    gc.unfreeze()
    assert (waiting.running, waiting.closed) == (0, True)


def strange(server: MeshServer, method: str, kind: str = "unary_stream") -> Any:
    """A caller of a method who sends and reads bytes."""
    channel = grpc.aio.insecure_channel(server.address)
    return channel, getattr(channel, kind)(method)


async def test_streams_of_health_and_reflection_are_few(served) -> None:
    _, server = served
    for method, kind, most in (("/grpc.health.v1.Health/Watch", "unary_stream", MOST_WATCHES),
                               ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "stream_stream",
                                MOST_REFLECTIONS)):
        channel, call = strange(server, method, kind)
        async with channel:
            def begin(call: Any = call, kind: str = kind) -> Any:
                return call(b"") if kind == "unary_stream" else call()

            async def first(stream: Any, kind: str = kind) -> bytes:
                if kind == "stream_stream":
                    await stream.write(b"\x3a\x00")  # list_services
                return await stream.read()

            open_now = [begin() for _ in range(most)]
            for stream in open_now:
                assert await first(stream)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await first(begin())
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            open_now.pop().cancel()

            async def one_more(first: Any = first, begin: Any = begin) -> bool:
                try:
                    return bool(await first(begin()))
                except grpc.aio.AioRpcError:
                    return False

            for _ in range(1000):
                if await one_more():
                    break
                await asyncio.sleep(0.01)
            else:
                pytest.fail("the place of a stream that has ended stays taken")


async def test_a_watcher_hears_of_changes_and_does_not_hold_up_the_end() -> None:
    alive, waiting = [True], Waiting()
    server = MeshServer(ServiceConfig(host="127.0.0.1"), "test")
    await server.start(waiting, alive=lambda: alive[0])
    gc.unfreeze()
    async with grpc.aio.insecure_channel(server.address) as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        alive[0] = False
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        alive[0] = True
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.stop(20))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watching.read() is grpc.aio.EOF
        await asyncio.wait_for(stopping, 10)


async def test_a_question_about_a_service_that_is_not_there(served) -> None:
    _, server = served
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub, nowhere = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service="no.such")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(nowhere)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert (await stub.Watch(nowhere).read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert set((await stub.List(health_pb2.HealthListRequest())).statuses) == {"", "moshimesh.lm.v1.LmService"}


async def test_reflection_that_asks_nothing_ends() -> None:
    asked: asyncio.Queue[bytes] = asyncio.Queue()

    async def requests() -> AsyncIterator[bytes]:
        while True:
            yield await asked.get()

    info = Reflection(["moshimesh.lm.v1.LmService"], idle_s=0.05)
    answers = info.answer(Incoming(requests(), reflection_pb2.ServerReflectionRequest.FromString))
    asked.put_nowait(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
    assert {service.name for service in (await anext(answers)).list_services_response.service} == {
        "moshimesh.lm.v1.LmService", "grpc.reflection.v1alpha.ServerReflection"}
    with pytest.raises(SlowCaller):
        await anext(answers)


async def test_reflection_can_be_turned_off() -> None:
    server = MeshServer(ServiceConfig(host="127.0.0.1", reflection=False), "test")
    await server.start(Waiting())
    gc.unfreeze()
    channel, call = strange(server, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "stream_stream")
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call().read()
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    await server.stop(0)


class Unready(Waiting):
    """Reads so many requests as fast as they come, and then none."""

    async def step(self, requests: Incoming[lm_pb2.StepRequest]) -> AsyncGenerator[lm_pb2.StepResponse, None]:
        async for _ in requests:
            self.running += 1
            if self.running == 3000:
                break
        yield lm_pb2.StepResponse(ready=lm_pb2.StepReady())
        await asyncio.Event().wait()


async def test_little_waits_in_the_transport_for_a_handler_that_does_not_read() -> None:
    """gRPC's windows once grew to megabytes of tiny messages, which cost others' calls their time."""
    unready, server = Unready(), MeshServer(ServiceConfig(host="127.0.0.1"), "test", CALLER_OPTIONS)
    await server.start(unready)
    gc.unfreeze()
    request = lm_pb2.StepRequest(config=lm_pb2.StepConfig(session_id="x" * 100))
    written = 0

    async def write(call: Any) -> None:
        nonlocal written
        while written < 50_000:
            await call.write(request)
            written += 1

    async with grpc.aio.insecure_channel(server.address) as channel:
        call = lm_pb2_grpc.LmServiceStub(channel).Step()
        writing = asyncio.create_task(write(call))
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(1.0)
        call.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    await server.stop(0)
    assert 3000 <= written < 3000 + (256 << 10) // request.ByteSize()


def test_what_grpc_logs_of_a_callers_message_is_one_line_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """A message that is too large when it is unpacked makes gRPC log one each, if it is answered at that moment."""
    grpcs = logging.getLogger("grpc._cython.cygrpc")
    before = list(grpcs.filters)
    logs.configure(ServiceConfig(), "test")
    try:
        for _ in range(5):
            try:
                raise RuntimeError("ExecuteBatchError")
            except RuntimeError:
                grpcs.exception("ExecuteBatchError raised in core by servicer method [%s]", "Step")
        grpcs.error("something else")
    finally:
        grpcs.filters[:] = before
    assert [(record.levelname, record.exc_info) for record in caplog.records if record.name == grpcs.name] == [
        ("WARNING", None), ("ERROR", None)]


async def test_a_process_asks_for_as_many_connections_as_it_may_have() -> None:
    code = ("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))\n"
            "from services.mesh.config import ServiceConfig\nfrom services.mesh.process import run\n"
            "async def main(): print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
            "run('test', ServiceConfig(), main)")
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert (await child.communicate())[0].split() == [b"(256,", b"256)"]
