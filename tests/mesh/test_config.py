"""Settings as people write them."""

from __future__ import annotations

import pytest

from services.gateway.config import GatewayConfig
from services.mesh.config import ServiceConfig, read_config


@pytest.mark.parametrize("level", ["INFO", "Info", "info"])
def test_a_log_level_in_any_case(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSHIMESH_LOG_LEVEL", level)
    monkeypatch.setattr("sys.argv", ["gateway", "--log-format", "JSON"])
    config = read_config(GatewayConfig, "gateway")
    assert (config.log_level, config.log_format) == ("info", "json")


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files hand over `${PORT:-}`."""
    unset = GatewayConfig()
    for name in GatewayConfig.model_fields:
        monkeypatch.setenv(f"MOSHIMESH_{name.upper()}", "")
    assert GatewayConfig() == unset


def test_a_wrong_level_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gateway", "--log-level", "loud"])
    with pytest.raises(SystemExit, match=r"gateway: --log-level: .*'loud'"):
        read_config(ServiceConfig, "gateway")


@pytest.mark.parametrize(("flags", "says"), [
    (["--codec", "codec"], "--codec: .*'codec' is not host:port"), (["--lm", "lm:"], "--lm: .*'lm:' is not host:port"),
    (["--lm", "a:1, b"], "--lm: .*'b' is not host:port"), (["--lm", "a:99999"], "--lm: .*'a:99999' is not host:port"),
    (["--codec", "http://codec:50051"], "--codec: 'http://codec:50051' is not host:port"),
    (["--codec", "dns:///codec:50051"], "is not host:port"), (["--codec", " , "], "--codec: no address is named"),
    (["--codec", "a:\u0663"], "is not host:port"), (["--codec", "a..b:1"], "--codec: 'a..b' is not the name of a host"),
    (["--lm", "x" * 70 + ":1"], "is not the name of a host"), (["--host", "a..b"], "--host: .*not the name of a host"),
    (["--host", "0.0.0.0:50050"], "--host: .*without scheme, port"),
    (["--host", "http://a"], "--host: .*without scheme"),
    (["--metrics-host", "a b"], "--metrics-host: .*not an address"),
    (["--lm", "::1:50052"], r"--lm: .*brackets"), (["--lm", ":50052"], "--lm: .*':50052' is not host:port")])
def test_an_address_that_is_none_is_named(flags: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gateway", *flags])
    with pytest.raises(SystemExit, match=says):
        read_config(GatewayConfig, "gateway")


def test_an_address_of_ipv6_with_and_without_brackets() -> None:
    assert ServiceConfig(host="[::1]").host == ServiceConfig(host="::1").host == "::1"
    assert ServiceConfig(metrics_host="[::1]").metrics_host == "::1"
    assert ServiceConfig(host=" 127.0.0.1 ").host == "127.0.0.1"
    assert GatewayConfig(lm="[::1]:50052, lm:1").lm == "[::1]:50052, lm:1"
