"""Who signs tokens: keys of all kinds, and a server that publishes them, or misbehaves."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example", "moshi-mesh"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
KEYS = {"RS256": RSA_KEY, "ES256": EC_KEY, "EdDSA": ED_KEY}


def published(*algorithms: str) -> dict[str, Any]:
    """The issuer's answer."""
    makers = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    return {"keys": [{**json.loads(makers[name].to_jwk(KEYS[name].public_key())), "kid": name, "use": "sig"}
                     for name in algorithms]}


def token(algorithm: str = "RS256", key: Any = None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token that holds, but for what is asked otherwise; a claim of None is left out."""
    all_claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "exp": time.time() + 300, **claims}
    return jwt.encode({name: value for name, value in all_claims.items() if value is not None},
                      KEYS[algorithm] if key is None else key, algorithm,
                      headers={"kid": algorithm} if headers is None else headers)


class Issuer:
    """Publishes keys on this machine."""

    def __init__(self) -> None:
        self.answer: Any = published("RS256", "ES256", "EdDSA")
        self.asked = 0
        self.behave()

    def behave(self, *, status: int = 200, body: bytes = b"", location: str = "", waits_s: float = 0.0) -> None:
        """How to answer from now on; a `body` stands in the place of the keys."""
        self.status, self.body, self.location, self.waits_s = status, body, location, waits_s

    async def __aenter__(self) -> Issuer:
        app = web.Application()
        app.add_routes([web.get("/keys", self._keys)])
        # What waits is not waited for at the end.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/keys"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _keys(self, request: web.Request) -> web.Response:
        self.asked += 1
        await asyncio.sleep(self.waits_s)
        headers = {"Location": self.location} if self.location else {}
        return web.Response(status=self.status, body=self.body or json.dumps(self.answer).encode(), headers=headers)
