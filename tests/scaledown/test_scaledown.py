"""The controller as a process, beside a fake API server and fake pods on real ports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from services.scaledown.costs import calls_of
from services.scaledown.kube import COST
from tests.until import until

ROOT = Path(__file__).resolve().parent.parent.parent
LM = 'moshimesh_slots{{batcher="lm",state="used"}} {calls}.0\nmoshimesh_slots{{batcher="lm",state="free"}} 3.0\n'


class FakeCluster:
    """An API server with pods, each of which serves a page of metrics at an address of its own."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.pages: dict[str, str] = {}
        self.patches: list[tuple[str, str]] = []
        self.token, self.asked, self.failing = "one", 0, False
        self._runners: list[web.AppRunner] = []

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/api/v1/namespaces/mesh/pods", self._list)
        app.router.add_patch("/api/v1/namespaces/mesh/pods/{name}", self._patch)
        self.port = await self._serve(app, "127.0.0.1")

    async def add(self, name: str, page: str) -> None:
        address = f"127.0.0.{len(self.pods) + 2}"
        self.pages[name] = page

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(text=self.pages[name])

        app = web.Application()
        app.router.add_get("/metrics", metrics)
        port = await self._serve(app, address)
        self.pods[name] = {"metadata": {"name": name, "annotations": {}}, "status": {"podIP": address},
                           "spec": {"containers": [{"ports": [{"name": "metrics", "containerPort": port}]}]}}

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    def cost(self, name: str) -> str | None:
        found: str | None = self.pods[name]["metadata"]["annotations"].get(COST)
        return found

    async def _serve(self, app: web.Application, address: str) -> int:
        runner = web.AppRunner(app)
        self._runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, address, 0).start()
        return int(runner.addresses[0][1])

    def _check(self, request: web.Request) -> None:
        self.asked += 1
        if request.headers["Authorization"] != f"Bearer {self.token}":
            raise web.HTTPUnauthorized
        if self.failing:
            raise web.HTTPInternalServerError

    async def _list(self, request: web.Request) -> web.Response:
        self._check(request)
        assert request.query["labelSelector"].startswith("app.kubernetes.io/part-of=moshi-mesh")
        begin = int(request.query.get("continue", 0))  # two pods a page
        names = list(self.pods)
        more = {"continue": str(begin + 2)} if begin + 2 < len(names) else {}
        return web.json_response({"metadata": more, "items": [self.pods[name] for name in names[begin:begin + 2]]})

    async def _patch(self, request: web.Request) -> web.Response:
        self._check(request)
        assert request.content_type == "application/merge-patch+json"
        if (pod := self.pods.get(request.match_info["name"])) is None:
            raise web.HTTPNotFound
        annotations = (await request.json())["metadata"]["annotations"]
        pod["metadata"]["annotations"] |= annotations
        self.patches += [(request.match_info["name"], cost) for cost in annotations.values()]
        return web.json_response(pod)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    cluster = FakeCluster()
    await cluster.start()
    yield cluster
    await cluster.stop()


@contextlib.asynccontextmanager
async def controller(cluster: FakeCluster, account: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    for name, text in (("token", cluster.token), ("namespace", "mesh\n")):
        (account / name).write_text(text)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.scaledown", "--every-s", "1", "--api-url", f"http://127.0.0.1:{cluster.port}",
        "--account-folder", str(account), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    yield child
    child.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(child.wait(), 20) == 0


async def test_a_pod_costs_as_much_as_it_holds_calls(cluster: FakeCluster, tmp_path: Path) -> None:
    for name, calls in (("lm-a", 5), ("lm-b", 2), ("lm-c", 0)):
        await cluster.add(name, LM.format(calls=calls))
    async with controller(cluster, tmp_path):
        await until(lambda: (cluster.cost("lm-a"), cluster.cost("lm-b")) == ("5", "2"))
        assert cluster.cost("lm-c") is None  # counts as 0: nothing to write
        cluster.pages["lm-b"], cluster.pages["lm-c"] = LM.format(calls=0), LM.format(calls=4)
        await until(lambda: (cluster.cost("lm-b"), cluster.cost("lm-c")) == ("0", "4"))
        asked = cluster.asked
        await until(lambda: cluster.asked > asked + 4)
        assert len(cluster.patches) == 4  # what has not changed is not written again


async def test_it_goes_on_when_the_api_fails_and_when_its_token_is_replaced(cluster: FakeCluster, tmp_path: Path
                                                                            ) -> None:
    await cluster.add("lm-a", LM.format(calls=5))
    cluster.failing = True
    async with controller(cluster, tmp_path):
        await until(lambda: cluster.asked > 1)
        cluster.failing, cluster.token = False, "two"
        (tmp_path / "token").write_text("two")
        await until(lambda: cluster.cost("lm-a") == "5")


async def test_pods_that_do_not_answer_or_are_being_deleted_keep_what_they_have(cluster: FakeCluster, tmp_path: Path
                                                                                ) -> None:
    for name in ("lm-a", "lm-b", "lm-c"):
        await cluster.add(name, LM.format(calls=3))
    cluster.pods["lm-a"]["status"]["podIP"] = "127.0.0.200"  # nobody listens there
    cluster.pods["lm-b"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    async with controller(cluster, tmp_path):
        await until(lambda: cluster.cost("lm-c") == "3")
        assert {name for name, _ in cluster.patches} == {"lm-c"}


def test_calls_are_read_from_every_kind_of_pod() -> None:
    assert calls_of(LM.format(calls=7)) == 7
    assert calls_of('moshimesh_slots{batcher="encode",state="used"} 4.0\n'
                    'moshimesh_slots{batcher="decode",state="used"} 5.0\n') == 5
    assert calls_of("moshimesh_calls 12.0\n") == calls_of('moshimesh_calls{} 1.2e+01\n') == 12
    assert calls_of("# nothing of ours\n") is None
