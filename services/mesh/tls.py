"""Certificates that are kept in files, and read again when the files change: cert-manager and others replace them while
calls go on. A connection that stands keeps the certificate that it was opened with.
"""

from __future__ import annotations

import datetime
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from services.mesh.config import ServiceConfig

log = logging.getLogger(__name__)

# Files that have not changed for this long are whole; two of them can't be replaced at the same moment.
SETTLED_S = 0.5

_Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Pair:
    """A certificate with those between it and its CA, its key, and the CA of who is at the other end; all PEM."""

    chain: bytes
    key: bytes
    peer_ca: bytes | None
    context: ssl.SSLContext | None
    """For what does not speak gRPC; it asks nobody for a certificate."""


class Identity:
    """A certificate and its key, kept up with their files."""

    def __init__(self, option: str, chain: str, key: str, peer_ca: str | None = None, *, for_http: bool = False,
                 now: Callable[[], float] = time.monotonic) -> None:
        """`option` is the flag's name without what comes after the first word, for messages: --tls, --peer. With a
        `peer_ca` who connects must have a certificate of that CA, and so must those that we connect to. `for_http`
        makes a context of Python's ssl, too.

        Raises ValueError for files that can't be used.
        """
        self._option, self._for_http = option, for_http
        self._chain, self._key, self._ca = Path(chain), Path(key), Path(peer_ca) if peer_ca else None
        self._now, self._changed_at = now, now()
        self._seen = self._used = self._signature()
        self.current = self._read()

    def look(self) -> None:
        """Take the files' new content, if they have changed; to be called about once a second. What can't be used is
        left alone, with one line in the log.
        """
        signature = self._signature()
        if signature == self._used:
            return
        if signature != self._seen:
            self._seen, self._changed_at = signature, self._now()
        if self._now() - self._changed_at < SETTLED_S:
            return
        self._used = signature
        try:
            pair = self._read()
        except ValueError as error:
            log.error("%s; the certificate that was read before stays in use", error)
            return
        if (pair.chain, pair.key, pair.peer_ca) == (self.current.chain, self.current.key, self.current.peer_ca):
            return
        self.current = pair
        log.info("the certificate of %s-cert was replaced; the new one is valid until %s", self._option,
                 _leaf(pair.chain).not_valid_after_utc.strftime("%Y-%m-%d %H:%M UTC"))

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a port of gRPC; each new connection gets the present pair."""
        given = self.current

        def fetch() -> grpc.ServerCertificateConfiguration | None:  # asked by gRPC's threads for each connection
            nonlocal given
            pair = self.current
            if pair is given:
                return None
            given = pair
            return _configuration(pair)

        return grpc.dynamic_ssl_server_credentials(_configuration(given), fetch,
                                                   require_client_authentication=self._ca is not None)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel of gRPC: the pair of this moment, for as long as the channel lives."""
        return grpc.ssl_channel_credentials(self.current.peer_ca, self.current.key, self.current.chain)

    def server_context(self) -> ssl.SSLContext:
        """For a port that does not speak gRPC; each new connection gets the present pair. Needs `for_http`."""
        assert self.current.context is not None
        front = _context(self._chain, self._key)

        # A context keeps a certificate of each kind of key. So a new pair, whose kind may be another, has a context of
        # its own, and each connection is led there; OpenSSL asks for every one, whether or not it names a server.
        def lead(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
            assert self.current.context is not None
            connection.context = self.current.context

        front.sni_callback = lead
        return front

    def _signature(self) -> _Signature:
        """Equal as long as the files have not changed. A file that is away has a signature, too."""
        found = []
        for path in (self._chain, self._key, self._ca):
            if path is not None:
                try:
                    stat = path.stat()
                    found.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
                except OSError:
                    found.append((0, 0, 0))
        return tuple(found)

    def _read(self) -> Pair:
        """What the files have now. Raises ValueError when it can't be used."""
        chain = self._bytes("cert", self._chain)
        key = self._bytes("key", self._key)
        try:
            leaf = _leaf(chain)
        except ValueError:
            raise ValueError(f"{self._option}-cert: {self._chain} is no certificate in PEM's form") from None
        try:
            public = serialization.load_pem_private_key(key, password=None).public_key()
        except TypeError:
            raise ValueError(f"{self._option}-key: {self._key} is locked with a password; store it without one, "
                             "readable by this process alone") from None
        except Exception:  # cryptography has several for it, and their messages name parts of what was read
            raise ValueError(f"{self._option}-key: {self._key} is no private key in PEM's form") from None
        if _der(public) != _der(leaf.public_key()):
            raise ValueError(f"{self._option}-key: {self._key} is not the key of the certificate {self._chain}")
        if leaf.not_valid_after_utc < datetime.datetime.now(datetime.timezone.utc):
            raise ValueError(f"{self._option}-cert: {self._chain} was valid until "
                             f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC only")
        peer_ca = self._bytes("ca", self._ca) if self._ca is not None else None
        if peer_ca is not None:
            try:
                _leaf(peer_ca)
            except ValueError:
                raise ValueError(f"{self._option}-ca: {self._ca} is no certificate in PEM's form") from None
        try:
            context = _context(self._chain, self._key) if self._for_http else None
        except (OSError, ssl.SSLError) as error:  # replaced while it was read, or of a kind that OpenSSL does not take
            raise ValueError(f"{self._option}-cert: {self._chain} can't be used ({error})") from None
        return Pair(chain, key, peer_ca, context)

    def _bytes(self, part: str, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ValueError(f"{self._option}-{part}: {path} can't be read ({error.strerror})") from None


def peer_identity(config: ServiceConfig) -> Identity | None:
    """Who this process is among those of the mesh; None where they speak in plain text. Raises ValueError."""
    return Identity("--peer", config.peer_cert, config.peer_key, config.peer_ca) if config.peer_cert else None


def _configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)], pair.peer_ca)


def _context(chain: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key, password="")  # without one OpenSSL would ask at the terminal
    return context


def _leaf(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pem)[0]


def _der(public: object) -> bytes:
    encoded: bytes = public.public_bytes(  # type: ignore[attr-defined]  # a union of all kinds of keys
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded
