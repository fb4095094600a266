"""What operators read is complete, and what is generated is up to date."""

from __future__ import annotations

import re

import yaml

from scripts.check_manifests import ROOT
from scripts.configuration import PAGE, page
from tests.deploy.observability import OBSERVABILITY


def test_every_alert_has_its_page_of_the_runbook() -> None:
    rules = yaml.safe_load((OBSERVABILITY / "prometheus" / "rules.yml").read_text())
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    written = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert sorted(written) == sorted(alerts)


def test_the_page_of_settings_is_what_the_classes_say() -> None:
    assert PAGE.read_text() == page()
