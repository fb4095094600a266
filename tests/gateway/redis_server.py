"""Real Redis servers that a test may kill and start again on the same port."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.backoff import NoBackoff
from redis.retry import Retry

from harness.local_mesh import free_port
from harness.redis_server import NoRedis, from_debian, redis_executable


class RedisServer:
    """One server, or one node of several."""

    def __init__(self, *flags: str, config: str | None = None, program: str = "", certificate: Path | None = None,
                 password: str | None = None) -> None:
        """`config` is the text of a configuration file, which sentinels insist on. `program` is another server than
        the default one; with a `certificate` (see `certificate_in`) it takes TLS only. `password` is its requirepass.
        """
        self.port = next(port for port in iter(free_port, None) if port < 55_000)  # a cluster talks on port + 10000
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._program, self._certificate, self._password = program or redis_executable(), certificate, password
        self._flags = flags
        self._folder = tempfile.TemporaryDirectory(prefix="moshi-mesh-redis-")
        if config is not None:
            path = Path(self._folder.name, "redis.conf")
            path.write_text(config)
            self._flags = (str(path), *flags)
        self.start()

    def start(self) -> None:
        ports, tls = ["--port", str(self.port)], {}
        if self._certificate is not None:
            key = self._certificate.with_suffix(".key")
            ports = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no", "--tls-replication",
                     "yes", "--tls-cert-file", str(self._certificate), "--tls-key-file", str(key),
                     "--tls-ca-cert-file", str(self._certificate)]
            tls = {"ssl": True, "ssl_ca_certs": str(self._certificate)}
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
    """A certificate for 127.0.0.1 that signs itself; its key is beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis of a test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        # From here on what Python 3.13 asks of one that signs, see ssl.VERIFY_X509_STRICT.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=False, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
            decipher_only=False), critical=True)
        .sign(key, hashes.SHA256()))
    path = folder / "redis.crt"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return path
