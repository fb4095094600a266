"""Rendered manifests as processes of this machine: their commands, environment, ports, probes and grace as they stand.

This is what a kubelet does with a pod, without images. Only what a machine without Kubernetes can't have is mapped:
each pod's address is one of 127.0.0.0/8 (so that ports can stay), a Service's name is the addresses of its pods,
`python` is this one, /app, where the images have the sources, is the repository, and a Secret that a pod mounts is a
folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.nodes import Node
from harness.local_mesh import ROOT, MeshDown
from harness.redis_server import redis_executable
from scripts.check_manifests import IMAGES, Container, containers_of, instructions

ORDER = ("redis", "codec", "lm", "gateway")  # what another one waits for comes first
SPARE = 1  # addresses of a workload beyond its replicas: for the pod that an update starts before it stops one
LAST_LINES = 50
MOST_CLUSTERS = 60  # of a process, whose addresses differ
_NUMBERS = itertools.count()


class Pod:
    """One pod: a container's process, and the probes that say how it is."""

    def __init__(self, name: str, address: str, container: Container, environment: Mapping[str, str],
                 launcher: Sequence[str] = ()) -> None:
        """`launcher` is put before its command, such as `ip netns exec NAME`."""
        self.name, self.address, self.container = name, address, container
        self.grace_s = float(container.pod.get("terminationGracePeriodSeconds", 30))
        self.ready = False
        self.failures: list[str] = []
        """Of probes after it had started, and restarts that they would have caused."""
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        self.stopped_after_s = 0.0
        self._environment, self._launcher = environment, launcher
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def command(self) -> list[str]:
        """What is run: the manifest's command and arguments."""
        command = [*self.container.spec["command"], *self.container.spec.get("args", ())]
        if command[0] == "python":
            command[0] = sys.executable
        elif command[0] == "redis-server":
            command = [redis_executable(), *command[1:], "--bind", self.address, "--protected-mode", "no"]
        return [*self._launcher, *command]

    async def start(self) -> None:
        """Start its process and its probes."""
        self.child = await asyncio.create_subprocess_exec(
            *self.command, cwd=ROOT, env=self._environment, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, start_new_session=True)
        self._tasks = [asyncio.create_task(self._print()), asyncio.create_task(self._watch())]

    async def wait_ready(self) -> None:
        """Raises MeshDown when it ends, or fails its startup probe as often as it may."""
        while not self.ready:
            if self.child.returncode is not None or self.failures:
                raise MeshDown(f"{self.name} did not start: {self.failures} {' | '.join(self.lines)}")
            await asyncio.sleep(0.05)

    async def terminate(self) -> int:
        """SIGTERM, and SIGKILL when its grace is over. Returns the exit code, negative for a signal."""
        self._tasks[1].cancel()  # a pod that ends is probed no more
        self.ready = False
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self.child.terminate()
        try:
            await asyncio.wait_for(self.child.wait(), self.grace_s)
        except (asyncio.TimeoutError, TimeoutError):
            await self.kill()
        self.stopped_after_s = time.monotonic() - began
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return self.child.returncode or 0

    async def kill(self) -> None:
        """SIGKILL, as when its node is lost."""
        self._tasks[1].cancel()
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(signal.SIGKILL)
        await self.child.wait()

    async def _print(self) -> None:
        assert self.child.stdout is not None
        async for line in self.child.stdout:
            self.lines.append(line.decode(errors="replace").rstrip())

    async def _watch(self) -> None:
        """Ask the probes as their specs say: first the startup probe alone, then the others."""
        spec = self.container.spec
        if startup := spec.get("startupProbe"):
            for _ in range(startup["failureThreshold"]):
                if await self._asked(startup):
                    break
                await asyncio.sleep(startup["periodSeconds"])
            else:
                self.failures.append("startupProbe")
                return
        await asyncio.gather(*(self._repeat(name, spec[name]) for name in ("readinessProbe", "livenessProbe")))

    async def _repeat(self, name: str, probe: Mapping[str, Any]) -> None:
        failed = 0
        while True:
            good = await self._asked(probe)
            failed = 0 if good else failed + 1
            if name == "readinessProbe" and (good or failed >= probe.get("failureThreshold", 3)):
                self.ready = good
            elif not good and failed >= probe.get("failureThreshold", 3):
                self.failures.append(name)  # the kubelet would restart it
            await asyncio.sleep(probe["periodSeconds"])

    async def _asked(self, probe: Mapping[str, Any]) -> bool:
        """One question, from the pod's own place, as a kubelet's node has a way to it."""
        timeout_s = probe.get("timeoutSeconds", 1)
        if "grpc" in probe:
            target = f"{self.address}:{probe['grpc']['port']}"
            async with grpc.aio.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
                try:
                    answer = await health_pb2_grpc.HealthStub(channel).Check(
                        health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", "")), timeout=timeout_s)
                except grpc.aio.AioRpcError:
                    return False
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        # redis-cli is not always there where redis-server is; that somebody listens is all that is asked.
        port = self.container.ports[probe["tcpSocket"]["port"] if "tcpSocket" in probe else "redis"]
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(self.address, port), timeout_s)
        except (OSError, asyncio.TimeoutError, TimeoutError):
            return False
        writer.close()
        return True


class Cluster:
    """The pods of one rendering. Start with `async with`; each Deployment has `replicas` pods, Redis one."""

    def __init__(self, documents: Sequence[Mapping[str, Any]], replicas: int | Mapping[str, int],
                 nodes: Sequence[Node] = (), secrets: Path | None = None) -> None:
        """`replicas`: of every Deployment, or of each by its name. `nodes` have one pod each of a service. `secrets`
        has a folder of files for every Secret that pods mount, by its name.
        """
        self._documents, self._nodes, self._secrets = documents, nodes, secrets
        self.containers = {container.workload.removeprefix("Deployment/"): container
                           for container in containers_of(documents)}
        self.replicas = ({name: 1 if name == "redis" else replicas for name in self.containers}
                         if isinstance(replicas, int) else dict(replicas))
        self.pods: dict[str, list[Pod]] = {name: [] for name in self.containers}
        # Two clusters keep apart, those of one process, too.
        self._net, self._first = f"127.{10 + os.getpid() % 240}", len(ORDER) * (next(_NUMBERS) % MOST_CLUSTERS)

    async def __aenter__(self) -> Cluster:
        try:
            for name in ORDER:
                for _ in range(self.replicas[name]):
                    await self.start(name)
            for pod in self.all:
                await pod.wait_ready()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in reversed(ORDER):
            for pod in self.pods[name]:
                pod.grace_s = min(pod.grace_s, 10.0)  # nobody calls any more
            await asyncio.gather(*(pod.terminate() for pod in self.pods[name]))

    @property
    def all(self) -> list[Pod]:
        """Every pod that is not stopped."""
        return [pod for name in ORDER for pod in self.pods[name]]

    @property
    def target(self) -> str:
        """Where callers find the gateways, those of an update as well."""
        port = self.containers["gateway"].ports["grpc"]
        return ",".join(f"{address}:{port}" for address in self.addresses("gateway"))

    def addresses(self, workload: str) -> list[str]:
        """All that pods of a workload may have."""
        number = ORDER.index(workload) + 1
        if self._nodes:
            return [node.address(number) for node in self._nodes[:self.replicas[workload]]]
        return [f"{self._net}.{self._first + number}.{pod}" for pod in range(1, self.replicas[workload] + SPARE + 1)]

    async def start(self, workload: str) -> Pod:
        """Start one more pod of a workload."""
        taken = {pod.address for pod in self.pods[workload]}
        address = next(address for address in self.addresses(workload) if address not in taken)
        number = ORDER.index(workload) + 1
        name = f"{workload}-{self.addresses(workload).index(address) + 1}"
        launcher = next((node.launcher for node in self._nodes if node.address(number) == address), ())
        pod = Pod(name, address, self.containers[workload], self.environment(workload, name, address), launcher)
        self.pods[workload].append(pod)
        await pod.start()
        return pod

    async def stop(self, pod: Pod) -> int:
        """Delete a pod. Returns its exit code."""
        code = await pod.terminate()
        self.pods[pod.container.workload.removeprefix("Deployment/")].remove(pod)
        return code

    async def roll(self, workload: str) -> list[int]:
        """Replace every pod as the Deployment's strategy says. Returns the exit codes."""
        deployment = next(document for document in self._documents
                          if document["kind"] == "Deployment" and document["metadata"]["name"] == workload)
        surge = deployment["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxSurge", 1) != 0
        codes = []
        for old in list(self.pods[workload]):
            if surge:
                await (await self.start(workload)).wait_ready()
            codes.append(await self.stop(old))
            if not surge:
                await (await self.start(workload)).wait_ready()
        return codes

    def environment(self, workload: str, name: str, address: str) -> dict[str, str]:
        """A container's variables: the image's, then the manifest's."""
        container = self.containers[workload]
        variables = {"PATH": os.environ["PATH"], **_image_variables(workload)}
        fields = {"metadata.name": name, "metadata.namespace": "default", "spec.nodeName": "this-machine"}
        for entry in container.spec.get("env", ()):
            if path := entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath"):
                variables[entry["name"]] = fields[path]
        for key, value in container.environment.items():
            if value is not None:
                variables[key] = re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[0]), value)
        if container.service is None:
            return variables
        # What is mapped: the pod's own address, and names of Services.
        variables["MOSHIMESH_HOST"] = variables["MOSHIMESH_METRICS_HOST"] = address
        for mounted, folder in self._mounts(container):
            variables |= {key: value.replace(f"{mounted}/", f"{folder}/", 1) for key, value in variables.items()
                          if value.startswith(f"{mounted}/")}
        for key in ("MOSHIMESH_CODEC", "MOSHIMESH_LM"):
            if key in variables:
                host, _, port = variables[key].rpartition(":")
                variables[key] = ",".join(f"{one}:{port}" for one in self.addresses(host))
        if "MOSHIMESH_REDIS_URL" in variables:
            variables["MOSHIMESH_REDIS_URL"] = variables["MOSHIMESH_REDIS_URL"].replace(
                "//redis:", f"//{self.addresses('redis')[0]}:")
        return variables

    def _mounts(self, container: Container) -> Iterator[tuple[str, Path]]:
        """Where its Secrets are for the container, and where they are here."""
        of = {volume["name"]: volume["secret"]["secretName"] for volume in container.pod.get("volumes", ())
              if "secret" in volume}
        for mount in container.spec.get("volumeMounts", ()):
            if mount["name"] in of:
                assert self._secrets is not None, f"{container.workload} mounts {of[mount['name']]}"
                yield mount["mountPath"], self._secrets / of[mount["name"]]


def _image_variables(service: str) -> dict[str, str]:
    """ENV of a service's Dockerfile."""
    path = IMAGES / f"{service}.Dockerfile"
    if not path.exists():
        return {}
    pairs = (pair.split("=", 1) for line in instructions(path).get("ENV", ()) for pair in line.split())
    return {key: value.replace("/app", str(ROOT)) for key, value in pairs
            if key != "PATH" and "/cache" not in value}
