"""The images' bills of materials list what is locked, under licences that we may use, and images have versions."""

from __future__ import annotations

import json
import re

import pytest

from scripts.bill import IMAGES, LOCKS, UNKNOWN, locked


@pytest.mark.parametrize("lock", LOCKS)
def test_a_bill_lists_each_locked_package(lock: str) -> None:
    bill = json.loads((IMAGES / "locks" / f"{lock}.cdx.json").read_text())
    found = {one["name"]: (one["version"], [each["content"] for each in one["hashes"]]) for one in bill["components"]}
    assert found == locked(lock)
    assert len(found) > 20 and all(hashes for _, hashes in found.values())


def test_the_gateway_s_licences_are_permissive() -> None:
    bill = json.loads((IMAGES / "locks" / "gateway.cdx.json").read_text())
    said = {one["name"]: one["licenses"][0]["license"]["name"] for one in bill["components"]}
    odd = {name: text for name, text in said.items() if not re.search("Apache|BSD|MIT|PSF|Python|MPL", text)}
    assert not odd


@pytest.mark.parametrize("lock", LOCKS)
def test_the_licence_of_each_package_is_known(lock: str) -> None:
    assert UNKNOWN not in (IMAGES / "locks" / f"{lock}.cdx.json").read_text()


def test_images_of_others_have_exact_versions() -> None:
    deploy = IMAGES.parent
    texts = [path.read_text() for pattern in ("*.yaml", "*.Dockerfile") for path in sorted(deploy.rglob(pattern))]
    named = {name for text in texts for name in re.findall(r"(?:\bimage: |^FROM )([a-z][\w./-]*:\S+)", text, re.M)}
    others = {name for name in named if not name.startswith("moshi-mesh/")}
    assert len(others) >= 4
    assert [name for name in others if not re.search(r":\d+\.\d+\.\d+", name)] == []
