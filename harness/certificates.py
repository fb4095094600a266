"""Certificates for tests and measurements: a CA of one's own, and what it signs."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

DAY = datetime.timedelta(days=1)
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, PEM."""

    pem: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Put both into files, in place of what was there: NAME.pem and NAME.key."""
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        for path, data in zip(paths, (self.pem, self.key), strict=True):
            new = path.with_suffix(".new")
            new.write_bytes(data)
            new.replace(path)
        return paths


class Authority:
    """A CA that exists as long as a test or a measurement."""

    def __init__(self, name: str = "a CA of the harness") -> None:
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = (
            _builder(self._name, self._name, self._key.public_key(), self._key.public_key(), days=2)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            # Python 3.13 asks for it, see ssl.VERIFY_X509_STRICT.
            .add_extension(x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
                key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                decipher_only=False), critical=True)
            .sign(self._key, hashes.SHA256()))
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, *names: str, days: float = 1.0, kind: Literal["ec", "rsa"] = "ec") -> Certificate:
        """A certificate for these names and addresses, by default those of this machine to itself. It has been valid
        for two days; with negative `days` it is no longer.
        """
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = (
            ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048))
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "of the harness")])
        certificate = (
            _builder(subject, self._name, key.public_key(), self._key.public_key(), days)
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names or LOCAL]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256()))
        return Certificate(certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def serial_of(pem: bytes) -> int:
    """The number that tells certificates of one CA apart."""
    return x509.load_pem_x509_certificate(pem).serial_number


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
             signer: ec.EllipticCurvePublicKey, days: float) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
            .serial_number(x509.random_serial_number()).not_valid_before(now - 2 * DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False))


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
