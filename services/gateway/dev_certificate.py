"""A CA of this machine's own, and a certificate for its names: for --dev-tls, since browsers give a page the microphone
over TLS or on localhost only.

Both are kept, so that a CA needs to be trusted once. The certificate is made anew when it is about to expire, or when
the machine has another name or address.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

CA_DAYS = 3650
DAYS = 365  # some systems take no more than 825 days, browsers 398
RENEW_DAYS = 30


@dataclass(frozen=True)
class DevFiles:
    """Where they are, all PEM."""

    ca: Path
    """To be trusted by clients."""
    certificate: Path
    key: Path


def cache_folder() -> Path:
    """Where they are kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moshi-mesh" / "dev-tls"


def names_of_machine() -> list[str]:
    """What this machine can be called by: names first, then addresses."""
    host = socket.gethostname()
    addresses = {"127.0.0.1", "::1"}
    with contextlib.suppress(OSError):
        addresses |= {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    # Which address of ours would be used to get elsewhere; these are of no machine, and nothing is sent.
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            addresses.add(str(probe.getsockname()[0]))
    names = dict.fromkeys(["localhost", host.lower(), f"{host.partition('.')[0].lower()}.local"])
    return [*filter(str.isascii, names), *sorted(address for address in addresses if "%" not in address)]


def dev_certificate(folder: Path, names: list[str] | None = None) -> DevFiles:
    """The files of this folder, made where they are missing. `names` are those of this machine unless given.

    Raises ValueError when the folder can't be written or has something else in it.
    """
    names = names or names_of_machine()
    files = DevFiles(folder / "ca.pem", folder / "localhost.pem", folder / "localhost.key")
    ca_key = folder / "ca.key"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (files.ca.exists() and ca_key.exists()):
            _make_ca(files.ca, ca_key)
        ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
        if not _fits(files, ca, names):
            _make(files, ca, ca_key, names)
    except OSError as error:
        raise ValueError(f"--dev-tls: {error.filename or folder} can't be used ({error.strerror})") from None
    except (ValueError, TypeError):
        raise ValueError(f"--dev-tls: what is in {folder} is not ours; remove it") from None
    return files


def _fits(files: DevFiles, ca: x509.Certificate, names: list[str]) -> bool:
    if not (files.certificate.exists() and files.key.exists()):
        return False
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    return (certificate.issuer == ca.subject and key.public_key() == certificate.public_key()
            and list(found) == [_general(name) for name in names]
            and certificate.not_valid_after_utc > _now() + datetime.timedelta(days=RENEW_DAYS))


def _make_ca(path: Path, key_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    # With a number, since a CA that is made anew must not have the name of one that is trusted somewhere.
    common_name = f"moshi-mesh {x509.random_serial_number() % 10**6:06} of {socket.gethostname()}"[:64]
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    certificate = (
        _builder(name, name, key.public_key(), key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256()))
    _write(key_path, _pem(key), 0o600)
    _write(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _make(files: DevFiles, ca: x509.Certificate, ca_key_path: Path, names: list[str]) -> None:
    ca_key = serialization.load_pem_private_key(ca_key_path.read_bytes(), password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ValueError("another kind of key")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "moshi-mesh")])
    certificate = (
        _builder(subject, ca.subject, key.public_key(), ca_key.public_key(), DAYS)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256()))
    _write(files.key, _pem(key), 0o600)
    _write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePublicKey,
             days: int) -> x509.CertificateBuilder:
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_now() - datetime.timedelta(hours=1))  # for a machine whose clock is behind
            .not_valid_after(_now() + datetime.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False))


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=True, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
                         key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                         decipher_only=False)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())


def _write(path: Path, data: bytes, mode: int) -> None:
    """Put a whole file in place of what was there; nobody else may read it meanwhile."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    new.replace(path)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
