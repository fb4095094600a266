"""The manifests are true, and the check would notice if they were not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from scripts.check_manifests import IMAGES, K8S, check_dockerfile, check_documents, kustomizations, render, settings
from services.lm.config import LmConfig

Documents = list[dict[str, Any]]


@cache
def _rendered(folder: Path) -> Documents:
    return [dict(document) for document in render(folder)]


def _find(documents: Documents, kind: str, name: str) -> dict[str, Any]:
    return next(document for document in documents
                if document["kind"] == kind and document["metadata"]["name"].split("-")[0] == name)


def _container(documents: Documents, workload: str) -> dict[str, Any]:
    container: dict[str, Any] = _find(documents, "Deployment", workload)["spec"]["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("folder", kustomizations(), ids=lambda folder: str(folder.relative_to(K8S)))
def test_manifests_are_valid_and_true(folder: Path) -> None:
    assert list(check_documents(_rendered(folder))) == []


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.Dockerfile")), ids=lambda path: path.name)
def test_dockerfiles_are_true(path: Path) -> None:
    assert list(check_dockerfile(path)) == []


def test_there_is_an_image_for_every_service() -> None:
    assert sorted(path.stem for path in IMAGES.glob("*.Dockerfile")) == ["codec", "gateway", "lm"]


def _replicas_and_gpus(folder: Path) -> dict[str, tuple[int, int]]:
    """Pods of each Deployment, and GPUs of one pod."""
    found = {}
    for document in _rendered(folder):
        if document["kind"] == "Deployment":
            (container,) = document["spec"]["template"]["spec"]["containers"]
            gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
            found[document["metadata"]["name"]] = (document["spec"]["replicas"], gpus)
    return found


@pytest.mark.parametrize("folder", [K8S / "base", K8S / "overlays" / "shared-weights"], ids=lambda folder: folder.name)
def test_updates_cost_no_frame_since_there_are_two_of_each(folder: Path) -> None:
    found = _replicas_and_gpus(folder)
    assert {name: pods for name, (pods, _) in found.items() if name != "redis"} == {"codec": 2, "lm": 2, "gateway": 2}


def test_the_base_asks_for_as_many_gpus_as_it_says() -> None:
    gpus = sum(pods * each for pods, each in _replicas_and_gpus(K8S / "base").values())
    assert f"on {gpus} GPUs" in (K8S / "base" / "kustomization.yaml").read_text().splitlines()[0]
    assert f"{gpus} GPUs" in (K8S.parent / "README.md").read_text()


def test_dev_is_one_pod_each_without_a_gpu() -> None:
    assert "one pod each" in (K8S / "overlays" / "dev" / "kustomization.yaml").read_text().splitlines()[0]
    assert _replicas_and_gpus(K8S / "overlays" / "dev") == dict.fromkeys(("codec", "lm", "gateway", "redis"), (1, 0))
    for document in _rendered(K8S / "overlays" / "dev"):
        assert "tolerations" not in document.get("spec", {}).get("template", {}).get("spec", {})


@pytest.mark.parametrize("folder", kustomizations(), ids=lambda folder: str(folder.relative_to(K8S)))
def test_the_redis_url_is_in_a_secret_alone(folder: Path) -> None:
    holders = [document["kind"] for document in _rendered(folder)
               if "MOSHIMESH_REDIS_URL" in document.get("data", {})]
    assert holders == ([] if folder.name == "production" else ["Secret"])  # there it is one that you make


def test_weights_that_are_shared_are_in_one_claim() -> None:
    documents = _rendered(K8S / "overlays" / "shared-weights")
    for name in ("codec", "lm"):
        volumes = _find(documents, "Deployment", name)["spec"]["template"]["spec"]["volumes"]
        assert {volume["name"]: volume.get("persistentVolumeClaim") for volume in volumes} == {
            "cache": {"claimName": "weights"}, "tmp": None}
    assert _find(documents, "PersistentVolumeClaim", "weights")["spec"]["accessModes"] == ["ReadWriteMany"]


def test_every_folder_is_in_the_readme() -> None:
    readme = (K8S.parent / "README.md").read_text()
    for folder in kustomizations():
        assert f"`k8s/{folder.relative_to(K8S)}`" in readme


def _misspell_variable(documents: Documents) -> None:
    _find(documents, "ConfigMap", "gateway")["data"]["MOSHIMESH_REDIS"] = "redis://redis:6379/0"


def _misspell_field(documents: Documents) -> None:
    _container(documents, "lm")["resorces"] = {}


def _too_many_slots(documents: Documents) -> None:
    _find(documents, "ConfigMap", "engine")["data"]["MOSHIMESH_SLOTS"] = "999"


def _move_port(documents: Documents) -> None:
    _container(documents, "lm")["env"] = [{"name": "MOSHIMESH_PORT", "value": "6000"}]


def _move_metrics(documents: Documents) -> None:
    _container(documents, "lm")["env"] = [{"name": "MOSHIMESH_METRICS_PORT", "value": "9465"}]


def _no_port_for_probes(documents: Documents) -> None:
    _container(documents, "lm")["env"] = [{"name": f"MOSHIMESH_PEER_{part}", "value": "/peer-tls"}
                                          for part in ("CA", "CERT", "KEY")]


def _hide_metrics(documents: Documents) -> None:
    _container(documents, "lm")["env"] = [{"name": "MOSHIMESH_METRICS_HOST", "value": "127.0.0.1"}]


def _misspell_module(documents: Documents) -> None:
    _container(documents, "codec")["command"][2] = "services.codecs"


def _unknown_flag(documents: Documents) -> None:
    _container(documents, "codec")["args"] = ["--slot", "3"]


def _wrong_peer(documents: Documents) -> None:
    _find(documents, "ConfigMap", "gateway")["data"]["MOSHIMESH_LM"] = "lm:50051"


def _swapped_peers(documents: Documents) -> None:
    _find(documents, "ConfigMap", "gateway")["data"]["MOSHIMESH_LM"] = "codec:50051"


def _short_grace(documents: Documents) -> None:
    _find(documents, "ConfigMap", "mesh")["data"]["MOSHIMESH_DRAIN_S"] = "90"


def _no_gpu(documents: Documents) -> None:
    del _container(documents, "lm")["resources"]["limits"]["nvidia.com/gpu"]


def _restart_without_lm(documents: Documents) -> None:
    container = _container(documents, "gateway")
    container["livenessProbe"] = container["readinessProbe"]


def _always_ready(documents: Documents) -> None:
    del _container(documents, "gateway")["readinessProbe"]["grpc"]["service"]


def _no_strategy_type(documents: Documents) -> None:
    del _find(documents, "Deployment", "lm")["spec"]["strategy"]["type"]


def _one_pod(documents: Documents) -> None:
    _find(documents, "Deployment", "lm")["spec"]["replicas"] = 1


def _gpu_taint(documents: Documents) -> None:
    del _find(documents, "Deployment", "lm")["spec"]["template"]["spec"]["tolerations"]


def _open_password(documents: Documents) -> None:
    _find(documents, "ConfigMap", "gateway")["data"]["MOSHIMESH_REDIS_URL"] = "redis://:secret@redis:6379/0"


def _wrong_redis(documents: Documents) -> None:
    secret = _find(documents, "Secret", "redis")
    secret["stringData"] = {"MOSHIMESH_REDIS_URL": "redis://:secret@redis:6380/0"}


def _headless_translation(documents: Documents) -> None:
    _find(documents, "Service", "lm")["spec"]["ports"][0]["port"] = 80


def _lost_selector(documents: Documents) -> None:
    _find(documents, "Service", "gateway")["spec"]["selector"]["app.kubernetes.io/name"] = "gatewy"


@pytest.mark.parametrize(("spoil", "complaint"), [
    (_misspell_variable, "Deployment/gateway: MOSHIMESH_REDIS is not a setting of services.gateway; it has "),
    (_misspell_field, "'resorces' was unexpected"),
    (_too_many_slots, "would not start: --slots: Input should be less than or equal to 256, got '999'"),
    (_move_port, "Deployment/lm: containerPort must be 6000 and 9464, where the service listens, got [50052, 9464]"),
    (_move_metrics, "Deployment/lm: annotation prometheus.io/port must be 9465, where /metrics is, got 9464"),
    (_no_port_for_probes, "Deployment/lm: probes know no TLS; let them ask MOSHIMESH_HEALTH_PORT"),
    (_hide_metrics, "Deployment/lm: MOSHIMESH_METRICS_HOST is 127.0.0.1, where Prometheus can't read it; set it to "
                    "0.0.0.0"),
    (_misspell_module, "Deployment/codec: command: there is no module services.codecs"),
    (_unknown_flag, "Deployment/codec: services.codec would not start: "),
    (_wrong_peer, "MOSHIMESH_LM=lm:50051: there is no Service lm with port 50051"),
    (_swapped_peers, "MOSHIMESH_LM=codec:50051 leads to Deployment/codec"),
    (_short_grace, "terminationGracePeriodSeconds must be more than drain_s 90, got 75"),
    (_no_gpu, "device is cuda and nvidia.com/gpu is 0"),
    (_restart_without_lm, "Deployment/gateway: livenessProbe must ask for the health of no service by name, got moshi"),
    (_always_ready, "Deployment/gateway: readinessProbe must ask for the health of moshimesh.gateway.v1."),
    (_no_strategy_type, "Deployment/lm: strategy has no type"),
    (_one_pod, "Deployment/lm: an update stops its only pod before the next one is ready"),
    (_gpu_taint, "Deployment/lm: a GPU is asked for, and its taint is not tolerated"),
    (_open_password, "MOSHIMESH_REDIS_URL may hold a password, so it belongs into a Secret"),
    (_wrong_redis, "MOSHIMESH_REDIS_URL=redis:6380: there is no Service redis with port 6380"),
    (_headless_translation, "Service/lm: headless, so port must be 50052, got 80"),
    (_lost_selector, "Service/gateway: its selector matches no pod"),
])
def test_a_mistake_is_found(spoil: Callable[[Documents], None], complaint: str) -> None:
    documents = copy.deepcopy(_rendered(K8S / "base"))
    spoil(documents)
    problems = list(check_documents(documents))
    assert any(complaint in problem for problem in problems), problems
    assert not any("\n" in problem or "secret@" in problem for problem in problems)


def test_a_wrong_dockerfile_is_found(tmp_path: Path) -> None:
    path = tmp_path / "lm.Dockerfile"
    text = (IMAGES / "lm.Dockerfile").read_text()
    for right, wrong in (("services.lm", "services.llm"), ("services/lm", "services/llm"), ("50052", "50051"),
                         ("USER 10001:10001", "")):
        text = text.replace(right, wrong)
    path.write_text(text)
    problems = "\n".join(check_dockerfile(path))
    for complaint in ("ENTRYPOINT must be", "EXPOSE must be 50052", "USER must not be root", "COPY services/llm"):
        assert complaint in problems


def test_settings_are_read_as_the_process_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSHIMESH_SLOTS", "3")  # of this shell, which no pod sees
    assert settings(LmConfig, {"MOSHIMESH_PORT": "6000"}, ["--threads", "2"]) == LmConfig(port=6000, slots=8, threads=2)
