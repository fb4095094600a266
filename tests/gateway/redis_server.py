"""Real Redis servers that a test may kill and start again on the same port."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from harness.local_mesh import free_port
from harness.redis_server import redis_executable


class RedisServer:
    """One server, or one node of several."""

    def __init__(self, *flags: str, config: str | None = None) -> None:
        """`config` is the text of a configuration file, which sentinels insist on."""
        self.port = next(port for port in iter(free_port, None) if port < 55_000)  # a cluster talks on port + 10000
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._flags = flags
        self._folder = tempfile.TemporaryDirectory(prefix="moshi-mesh-redis-")
        if config is not None:
            path = Path(self._folder.name, "redis.conf")
            path.write_text(config)
            self._flags = (str(path), *flags)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [redis_executable(), *self._flags, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
             "--loglevel", "warning"], cwd=self._folder.name, stdout=subprocess.DEVNULL)
        self.client = redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0))
        for _ in range(200):
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.02)
        raise AssertionError("redis did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.client.close()
        self.kill()
        self._folder.cleanup()
