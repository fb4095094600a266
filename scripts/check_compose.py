"""deploy/compose.yaml as Kubernetes' documents, so that what holds for manifests is checked for it by the same code.

Compose has no probes of gRPC and no Services: those that check_manifests asks for are added here, with the names that
Compose gives its services.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from scripts.check_manifests import NAMES, ROOT

COMPOSE = ROOT / "deploy" / "compose.yaml"
PROFILES = ("cpu", "gpu")
PORT_NAMES = {6379: "redis", 8000: "http", 9464: "metrics", 50050: "grpc", 50051: "grpc", 50052: "grpc"}


def documents(profile: str) -> list[dict[str, Any]]:
    """A Deployment and a Service for each of the mesh's services and Redis; telemetry has no settings of ours."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    found = []
    for key, service in services.items():
        name = key.removesuffix("-gpu")
        if profile in service.get("profiles", [profile]) and name in (*NAMES, "redis"):
            aliases = service.get("networks", {}).get("default", {}).get("aliases", [])
            assert key == name or aliases == [name], f"{key} must answer to {name}"
            found += [_deployment(name, service), _service(name, service)]
    return found


def _ports(service: dict[str, Any]) -> list[int]:
    published = [int(entry.rpartition(":")[2]) for entry in service.get("ports", ())]
    return published + [int(entry) for entry in service.get("expose", ())]


def _deployment(name: str, service: dict[str, Any]) -> dict[str, Any]:
    ports = _ports(service)
    container: dict[str, Any] = {
        "name": name, "image": service["image"], "command": service["command"],
        "env": [{"name": key, "value": value} for key, value in service.get("environment", {}).items()],
        "ports": [{"name": PORT_NAMES[port], "containerPort": port} for port in ports]}
    pod: dict[str, Any] = {"enableServiceLinks": False, "containers": [container]}
    if name in NAMES:
        probe = {"grpc": {"port": ports[0]}, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 2000}
        container |= {"startupProbe": probe, "livenessProbe": probe,
                      "readinessProbe": probe | {"grpc": {"port": ports[0], "service": NAMES[name]}}}
        pod["terminationGracePeriodSeconds"] = int(re.sub("s$", "", service["stop_grace_period"]))
    else:
        container["readinessProbe"] = container["livenessProbe"] = {"tcpSocket": {"port": "redis"}, "periodSeconds": 1}
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    if gpus := sum(device["count"] for device in devices if "gpu" in device["capabilities"]):
        container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    labels = {"app.kubernetes.io/name": name}
    annotations = {"prometheus.io/port": "9464"} if 9464 in ports else {}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": labels},
                     "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod}}}


def _service(name: str, service: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": {"app.kubernetes.io/name": name},
                     "ports": [{"name": PORT_NAMES[port], "port": port} for port in _ports(service)]}}
