"""deploy/compose.yaml is valid, and says what is true of the services."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts.check_compose import COMPOSE, PROFILES, documents
from scripts.check_manifests import check_documents

SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]


def test_it_fits_the_schema_of_compose() -> None:
    tool = Path(sys.executable).parent / "check-jsonschema"
    done = subprocess.run([tool, "--builtin-schema", "vendor.compose-spec", COMPOSE], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_its_commands_settings_and_ports_are_the_services_own(profile: str) -> None:
    found = documents(profile)
    assert [document["metadata"]["name"] for document in found if document["kind"] == "Deployment"] == [
        "gateway", "codec", "lm", "redis"]
    assert list(check_documents(found)) == []


def test_a_mistake_in_it_is_found() -> None:
    found = documents("cpu")
    container = found[0]["spec"]["template"]["spec"]["containers"][0]
    container["env"] += [{"name": "MOSHIMESH_CODECS", "value": "codec:1"}, {"name": "MOSHIMESH_LM", "value": "lm:1"}]
    problems = "\n".join(check_documents(found))
    assert "MOSHIMESH_CODECS is not a setting" in problems and "there is no Service lm with port 1" in problems


def test_containers_have_no_rights_that_they_do_not_need() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"] and service["mem_limit"], name
        _, _, tag = service["image"].partition(":")
        assert tag and tag != "latest", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
