"""Real Redis servers that a test may kill and start again on the same port."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from harness.certificates import Authority
from harness.local_mesh import free_port
from harness.redis_server import NoRedis, from_debian, redis_executable


class RedisServer:
    """One server, or one node of several."""

    def __init__(self, *flags: str, config: str | None = None, program: str = "", certificate: Path | None = None,
                 asks: bool = False, password: str | None = None) -> None:
        """`config` is the text of a configuration file, which sentinels insist on. `program` is another server than
        the default one; with a `certificate` (see `certificate_in`) it takes TLS only, and if it `asks`, only from who
        has a certificate of the same CA. `password` is its requirepass.
        """
        # A cluster talks on port + 10000, which must not be one that the system gives to connections either.
        self.port = next(port for port in iter(free_port, None) if port + 10_000 < 32_768)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._program, self._certificate, self._password = program or redis_executable(), certificate, password
        self._asks, self._flags = asks, flags
        self._folder = tempfile.TemporaryDirectory(prefix="moshi-mesh-redis-")
        if config is not None:
            path = Path(self._folder.name, "redis.conf")
            path.write_text(config)
            self._flags = (str(path), *flags)
        self.start()

    def start(self) -> None:
        ports, tls = ["--port", str(self.port)], {}
        if self._certificate is not None:
            key, ca = self._certificate.with_suffix(".key"), str(self._certificate.with_name("ca.pem"))
            ports = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "yes" if self._asks else "no",
                     "--tls-replication", "yes", "--tls-cert-file", str(self._certificate), "--tls-key-file", str(key),
                     "--tls-ca-cert-file", ca]
            tls = {"ssl": True, "ssl_ca_certs": ca, "ssl_certfile": str(self._certificate), "ssl_keyfile": str(key)}
        if self._password is not None:
            ports += ["--requirepass", self._password]
        self.process = subprocess.Popen(
            [self._program, *self._flags, *ports, "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"],
            cwd=self._folder.name, stdout=subprocess.DEVNULL)
        self.client = redis.Redis(host="127.0.0.1", port=self.port, password=self._password,
                                  retry=Retry(NoBackoff(), 0), **tls)
        for _ in range(200):
            try:
                self.client.ping()
                return
            except redis.ConnectionError as error:
                last = error
                time.sleep(0.02)
        raise AssertionError(f"redis did not start: {last}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.client.close()
        self.kill()
        self._folder.cleanup()


def redis_with_tls() -> str | None:
    """A redis-server that can do TLS: the default one, or Debian's, unpacked once for each environment."""
    folder = Path(sys.prefix) / "share" / "moshimesh" / "redis-with-tls"
    if not (folder / "redis-server").exists():
        for server in (redis_executable, lambda: str(from_debian(folder))):
            try:
                program = server()
            except NoRedis:
                return None
            if _does_tls(program):
                return program
        return None
    return str(folder / "redis-server")


def _does_tls(program: str) -> bool:
    """Whether it was built with TLS: then it ends because it has no certificate, else because it has no TLS."""
    done = subprocess.run([program, "--port", "0", "--tls-port", str(free_port()), "--save", ""], capture_output=True,
                          text=True, cwd=tempfile.gettempdir(), check=False, timeout=10)
    return "Failed to configure TLS" in done.stdout


def certificate_in(folder: Path) -> Path:
    """A certificate for this machine; its key and ca.pem are beside it."""
    ca = Authority()
    (folder / "ca.pem").write_bytes(ca.pem)
    path, _ = ca.issue().write(folder, "redis")
    return path
