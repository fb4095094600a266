"""Tries to get in at codec and lm without being one of the mesh's own processes: `make doors` and a test say who was
refused.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness.certificates import Authority, Certificate
from harness.null_mesh import NullMesh

ROLES = ("codec", "lm")
ANSWER_S = 10.0  # a handshake takes milliseconds; a busy machine takes longer


async def tried_at_peers() -> dict[str, bool]:
    """Who was refused, by where and with what they tried.

    Raises AssertionError when a certificate of the mesh's CA is refused: a door that is shut proves nothing.
    """
    ca, other = Authority(), Authority("another CA")
    ours = _credentials(ca, ca.issue())
    intruders = {"no_certificate": _credentials(ca, None), "certificate_of_another_ca": _credentials(ca, other.issue()),
                 "expired_certificate": _credentials(ca, ca.issue(days=-1)), "plain_text": None}
    refused: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="moshi-mesh-intruders-") as name:
        folder = Path(name)
        (folder / "ca.pem").write_bytes(ca.pem)
        chain, key = ca.issue().write(folder, "peer")
        environment = {"MOSHIMESH_PEER_CA": str(folder / "ca.pem"), "MOSHIMESH_PEER_CERT": str(chain),
                       "MOSHIMESH_PEER_KEY": str(key)}
        async with NullMesh(slots=2, environment=environment, credentials=dict.fromkeys(ROLES, ours)) as mesh:
            for role in ROLES:
                for who, theirs in intruders.items():
                    refused[f"{role}_{who}"] = not await _answers(mesh.ports[role], theirs)
                assert await _answers(mesh.ports[role], ours), f"{role} refuses a certificate of the mesh's CA"
    return refused


def _credentials(ca: Authority, certificate: Certificate | None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(ca.pem, *((certificate.key, certificate.pem) if certificate else ()))


async def _answers(port: int, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether health is told there; of all calls that is the one for which a service asks the least."""
    address = f"localhost:{port}"
    async with (grpc.aio.secure_channel(address, credentials) if credentials
                else grpc.aio.insecure_channel(address)) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:  # no verdict on who calls
                raise
            return False
    return True
