"""Tries everything that must not open a gateway's door: `make doors` and the tests say who was refused.

The gateway is started with `Intruders.flags`, so that it asks our issuer for its keys; then `tried` calls it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import jwt
from cryptography.hazmat.primitives import hmac
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc

from harness.issuer import AUDIENCE, ISSUER, RSA_KEY, Issuer, token
from services.gateway.trust.keys import LOOK_S, hash_of, new_key
from services.gateway.trust.tokens import ANSWER_S

REFUSALS = {"UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE"}
SHORTEST_SECRET_S = 10.0  # the shortest life that a client secret may be given


class Intruders:
    """Our keys and our issuer; `async with` starts the issuer."""

    def __init__(self, folder: Path, answer_s: float = ANSWER_S) -> None:
        """`answer_s` is how long a gateway waits for an issuer, and leaves one alone that has failed."""
        self._answer_s = answer_s
        self._path = folder / "keys.json"
        self.key, self.revoked = new_key(), new_key()
        self._write(shop=self.key, revoked=self.revoked)
        self.issuer = Issuer()

    async def __aenter__(self) -> Intruders:
        await self.issuer.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.issuer.__aexit__()

    @property
    def flags(self) -> list[str]:
        """What the gateways must be started with."""
        return ["--keys-file", str(self._path), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE,
                "--jwks-url", self.issuer.url]

    async def tried(self, target: str, url: str, other_target: str = "") -> dict[str, bool]:
        """Who was refused, by what they tried. Takes 40 s.

        Args:
            target: host:port of a gateway's gRPC side. It must not have fetched the issuer's keys yet.
            url: of its HTTP side.
            other_target: another gateway of the same mesh, where a ticket is shown again; empty for the same one.

        Raises AssertionError when a credential that holds is refused: a door that is shut proves nothing.
        """
        refused: dict[str, bool] = {}
        self._write(shop=self.key)
        async with contextlib.AsyncExitStack() as opened:
            stub, other = [conversation_pb2_grpc.ConversationServiceStub(
                await opened.enter_async_context(grpc.aio.insecure_channel(one)))
                for one in (target, other_target or target)]
            http = await opened.enter_async_context(aiohttp.ClientSession(url))
            await _until(lambda: _is_refused(stub, self.revoked), LOOK_S + 5)
            for name, trouble in self._troubles().items():
                self.issuer.behave(**trouble)
                refused[name] = await _is_refused(stub, token())
                await asyncio.sleep(self._answer_s + 0.1)
            self.issuer.behave()
            secret = await self._ticket(http, "/v1/realtime/client_secrets", {"expires_after": {
                "seconds": SHORTEST_SECRET_S}})
            expires_at = time.monotonic() + SHORTEST_SECRET_S
            for name, credential in self._holding().items():
                assert not await _is_refused(stub, credential), f"{name} was refused"
            assert not await _is_refused(stub, secret), "a client secret was refused"
            ticket = await self._ticket(http, "/api/tickets", {})
            assert not await _is_refused(stub, ticket), "a ticket was refused"
            refused["used_ticket"] = await _is_refused(stub, ticket)
            refused["used_ticket_elsewhere"] = await _is_refused(other, ticket)
            for name, credential in self._not_holding().items():
                refused[name] = await _is_refused(stub, credential)
            refused["no_key_converse"] = await _is_refused_a_call(stub)
            async with http.get("/api/chat", params={"api_key": self.key}) as answer:
                refused["key_in_url"] = answer.status in (400, 401, 403)
            await asyncio.sleep(max(expires_at - time.monotonic(), 0) + 0.5)
            refused["expired_ticket"] = await _is_refused(stub, secret)
        return refused

    def _troubles(self) -> dict[str, dict[str, Any]]:
        return {
            "jwks_away": {"status": 503}, "jwks_slow": {"waits_s": self._answer_s + 2},
            "jwks_huge": {"body": b'{"keys": [' + b" " * (1 << 20) + b"]}"},
            "jwks_redirecting": {"status": 302, "location": "file:///etc/hostname"}}

    def _holding(self) -> dict[str, str]:
        return {"a key": self.key, "a token": token()}

    def _not_holding(self) -> dict[str, str]:
        ours = {"iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "exp": time.time() + 60}
        return {
            "no_key": "", "unknown_key": new_key(), "revoked_key": self.revoked, "unknown_ticket": "ek_" + "x" * 43,
            "alg_none": jwt.encode(ours, None, "none", headers={"kid": "RS256"}),
            "other_audience": token(aud="another"), "other_issuer": token(iss="https://another.example"),
            "expired_token": token(exp=time.time() - 120),
            "wrong_key": token(key=rsa.generate_private_key(65537, 2048)),
            "hs256_with_public_key": _public_as_secret(ours)}

    async def _ticket(self, http: aiohttp.ClientSession, path: str, body: dict[str, object]) -> str:
        async with http.post(path, json=body, headers={"Authorization": f"Bearer {self.key}"}) as answer:
            told = await answer.json()
            assert answer.status == 200, f"{path} answers {answer.status}: {told}"
            ticket: str = told.get("ticket") or told["value"]
            return ticket

    def _write(self, **keys: str) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"keys": [{"name": name, "sha256": hash_of(key)} for name, key in keys.items()]}))
        new.replace(self._path)


def _public_as_secret(claims: dict[str, object]) -> str:
    """A token whose signature is an HMAC with what everybody knows."""
    head = {"alg": "HS256", "typ": "JWT", "kid": "RS256"}
    signed = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
                      for part in (head, claims))
    mac = hmac.HMAC(RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), SHA256())
    mac.update(signed.encode())
    return f"{signed}.{base64.urlsafe_b64encode(mac.finalize()).rstrip(b'=').decode()}"


async def _is_refused(stub: conversation_pb2_grpc.ConversationServiceStub, credential: str) -> bool:
    """Whether GetInfo refuses it for lack of rights, and with a reason."""
    metadata = (("authorization", f"Bearer {credential}"),) if credential else ()
    try:
        await stub.GetInfo(conversation_pb2.GetInfoRequest(), metadata=metadata, timeout=ANSWER_S + 10)
    except grpc.aio.AioRpcError as error:
        return _refuses(error)
    return False


async def _is_refused_a_call(stub: conversation_pb2_grpc.ConversationServiceStub) -> bool:
    call = stub.Converse(timeout=10)
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        return _refuses(error)
    return False


def _refuses(error: grpc.aio.AioRpcError) -> bool:
    reason = dict(error.trailing_metadata() or ()).get("moshimesh-reason")
    return error.code().name in REFUSALS and bool(reason) and reason != "PEER_LOST"


async def _until(condition: Callable[[], Awaitable[bool]], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, "a revoked key still gets in"
        await asyncio.sleep(0.1)
