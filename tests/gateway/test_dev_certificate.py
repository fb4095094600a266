"""The certificate of --dev-tls: for this machine's names, kept, and made anew when it no longer fits."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from harness.certificates import serial_of
from services.gateway import dev_certificate as module
from services.gateway.dev_certificate import dev_certificate, names_of_machine
from services.mesh.tls import Identity


def serial(path: Path) -> int:
    return serial_of(path.read_bytes())


async def test_clients_that_trust_the_ca_reach_this_machine_by_each_of_its_names(tmp_path: Path) -> None:
    files = dev_certificate(tmp_path / "new" / "folder")
    identity = Identity("--tls", str(files.certificate), str(files.key), for_http=True)
    trusting = ssl.create_default_context(cafile=files.ca)
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0,
                                        ssl=identity.server_context())
    async with server:
        for name in names_of_machine():
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2], ssl=trusting,
                                                      server_hostname=name)
            writer.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(*server.sockets[0].getsockname()[:2], ssl=trusting,
                                          server_hostname="elsewhere.example")


def test_keys_are_for_this_user_alone(tmp_path: Path) -> None:
    dev_certificate(tmp_path / "tls")
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    for key in (tmp_path / "tls").glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_they_are_kept_and_made_anew_for_another_name_by_the_same_ca(tmp_path: Path) -> None:
    files = dev_certificate(tmp_path, ["localhost", "127.0.0.1"])
    ca, first = serial(files.ca), serial(files.certificate)
    dev_certificate(tmp_path, ["localhost", "127.0.0.1"])
    assert serial(files.certificate) == first
    dev_certificate(tmp_path, ["localhost", "127.0.0.1", "10.0.0.7"])
    assert serial(files.certificate) != first and serial(files.ca) == ca


def test_one_that_is_about_to_expire_or_lost_its_key_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                  ) -> None:
    files = dev_certificate(tmp_path)
    first = serial(files.certificate)
    now = module._now()
    monkeypatch.setattr(module, "_now", lambda: now + datetime.timedelta(days=module.DAYS - module.RENEW_DAYS + 1))
    second = serial(dev_certificate(tmp_path).certificate)
    assert second != first
    files.key.unlink()
    assert serial(dev_certificate(tmp_path).certificate) != second


def test_a_ca_signs_servers_and_no_other_ca(tmp_path: Path) -> None:
    files = dev_certificate(tmp_path)
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


@pytest.mark.parametrize("spoilt", ["a file", "something else"])
def test_a_folder_that_can_t_be_used_is_named(spoilt: str, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    if spoilt == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        for name in ("ca.pem", "ca.key"):
            (folder / name).write_text("nonsense")
    with pytest.raises(ValueError, match=f"--dev-tls: .*{folder}"):
        dev_certificate(folder)
