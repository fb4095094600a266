"""What is said when a gateway listens beyond localhost."""

from __future__ import annotations

import pytest

from services.gateway.exposure import exposed


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_a_laptop_s_default_is_nobody_s_business(host: str) -> None:
    assert exposed(host, tls=False, keys=False) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "mesh.example.com"])
def test_what_is_open_to_others_is_said_in_one_line(host: str) -> None:
    assert exposed(host, tls=True, keys=True) == ""
    both = exposed(host, tls=False, keys=False)
    assert both.startswith(f"{host} is open to other machines without TLS or keys: ") and "\n" not in both
    assert "without TLS: whoever is on the way can listen in (" in exposed(host, tls=False, keys=True)
    assert "without keys: whoever can reach it can call (" in exposed(host, tls=True, keys=False)
