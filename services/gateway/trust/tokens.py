"""JWTs: signed by who vouches for the caller, checked with keys that the issuer publishes or that are shared.

Each key says which one algorithm it is for, so a token can't choose: `none`, or a public key taken for a shared secret,
never gets that far (RFC 8725, section 3.1).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt

from services.gateway.exposure import is_loopback
from services.mesh import logs
from services.mesh.errors import IssuerUnavailable, MeshError, PermissionDenied, Unauthenticated

log = logging.getLogger(__name__)

LEEWAY_S = 30.0  # of the issuer's clock against ours
MOST_BYTES = 8192  # of a token
MOST_KEYS_BYTES = 1 << 18  # of an issuer's answer; one with 20 keys is 10 kB
MOST_KEYS = 100
ANSWER_S = 5.0
FRESH_S = 600.0  # the issuer is asked again for keys that are older
STALE_S = 3600.0  # keys that could not be renewed go on holding for this long
UNKNOWN_S = 30.0  # a token with a key that nobody knows makes us ask again, but not more often than this
SHORTEST_SECRET_BYTES = 32  # RFC 7518, section 3.2: as long as the hash

_CURVES = {"P-256": "ES256", "P-384": "ES384"}


@dataclass(frozen=True)
class Key:
    """A key, and the one algorithm that it is for."""

    algorithm: str
    key: Any


class SharedSecret:
    """One secret that the issuer and this mesh share: HS256."""

    def __init__(self, secret: bytes) -> None:
        """Raises ValueError when it is so short that it could be guessed."""
        if len(secret) < SHORTEST_SECRET_BYTES:
            raise ValueError(f"--jwt-secret-file: a secret must have at least {SHORTEST_SECRET_BYTES} bytes, got "
                             f"{len(secret)}")
        self._key = Key("HS256", secret)

    async def find(self, key_id: str | None) -> Key | None:
        """The key."""
        return self._key

    async def close(self) -> None:
        """Nothing to give back."""


class KeySet:
    """The keys that an issuer publishes (JWKS, RFC 7517): fetched, kept, and fetched again when they change."""

    def __init__(self, url: str, now: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError for a URL that anybody on the way could answer."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise ValueError("--jwks-url must be an https:// URL; http:// is for this machine alone")
        self._url, self._now = url, now
        self._keys: dict[str | None, Key] = {}
        self._fetched_at: float | None = None  # when these came
        self._asked_at: float | None = None  # when the issuer had been asked last, with or without success
        self._asking: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def find(self, key_id: str | None) -> Key | None:
        """The key of this id; without an id, the only one there is. Raises IssuerUnavailable."""
        age_s = self._now() - self._fetched_at if self._fetched_at is not None else None
        known = key_id in self._keys or (key_id is None and len(self._keys) == 1)
        if age_s is None or age_s > STALE_S:
            await self._asked(ANSWER_S)
        elif not known:
            await self._asked(UNKNOWN_S)
        elif age_s > FRESH_S:  # nobody waits for what is only getting old
            self._ask(UNKNOWN_S)
        if self._fetched_at is None or self._now() - self._fetched_at > STALE_S:
            raise IssuerUnavailable("the keys of who signs tokens can't be fetched now; retry")
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    async def close(self) -> None:
        """Give back the connection."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _ask(self, every_s: float) -> None:
        """Begin to fetch the keys, unless that is going on, or was tried less than `every_s` ago."""
        if self._asking is None and (self._asked_at is None or self._now() - self._asked_at >= every_s):
            self._asking = logs.unbound().run(asyncio.create_task, self._fetch())  # for all calls, not for this one

    async def _asked(self, every_s: float) -> None:
        """Fetch the keys likewise, and wait for them. All who wait share one fetch."""
        self._ask(every_s)
        if self._asking is not None:
            await asyncio.wait((self._asking,))

    async def _fetch(self) -> None:
        try:
            if self._session is None:
                self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S))
            # A redirect could lead anywhere, into our own network too.
            async with self._session.get(self._url, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise ValueError(f"status {answer.status}")
                data = await answer.content.read(MOST_KEYS_BYTES + 1)
                while not answer.content.at_eof() and len(data) <= MOST_KEYS_BYTES:
                    data += await answer.content.read(MOST_KEYS_BYTES + 1 - len(data))
            if len(data) > MOST_KEYS_BYTES:
                raise ValueError(f"more than {MOST_KEYS_BYTES} bytes")
            self._keys = read_key_set(data)
            self._fetched_at = self._now()
        except (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, OSError, ValueError) as error:
            log.error("the keys of who signs tokens can't be fetched: %s", str(error) or type(error).__name__)
        finally:
            # From its end: one that took all its time is not asked again at once.
            self._asked_at, self._asking = self._now(), None


def read_key_set(data: bytes) -> dict[str | None, Key]:
    """The keys for signatures in a JWKS, by id. Those that this mesh can't use are left out. Raises ValueError."""
    try:
        entries = json.loads(data)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("what came is no JWKS") from None
    if not isinstance(entries, list):
        raise ValueError("what came is no JWKS")
    keys: dict[str | None, Key] = {}
    for entry in entries[:MOST_KEYS]:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        algorithm = _algorithm(entry)
        key_id = entry.get("kid")
        if algorithm is None or entry.get("alg", algorithm) != algorithm or not isinstance(key_id, str | None):
            continue
        try:
            keys[key_id] = Key(algorithm, jwt.PyJWK(entry, algorithm).key)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue
    return keys


def _algorithm(entry: Mapping[str, Any]) -> str | None:
    """Which algorithm a published key is for. Never a shared one: what is published is no secret."""
    kind, curve = entry.get("kty"), entry.get("crv")
    if kind == "RSA":
        return "RS256"
    if kind == "EC":
        return _CURVES.get(str(curve))
    return "EdDSA" if kind == "OKP" and curve == "Ed25519" else None


class Tokens:
    """Checks the tokens of one issuer."""

    def __init__(self, issuer: str, audience: str, keys: SharedSecret | KeySet) -> None:
        self._issuer, self._audience, self._keys = issuer, audience, keys

    async def check(self, token: str) -> str:
        """Who the token is about, as a name for logs and limits that does not say it.

        Raises Unauthenticated, PermissionDenied, IssuerUnavailable.
        """
        if len(token) > MOST_BYTES:
            raise Unauthenticated("BAD_TOKEN", f"a token has at most {MOST_BYTES} bytes")
        try:
            header = jwt.get_unverified_header(token)
            key_id = header.get("kid")
            key = await self._keys.find(key_id if isinstance(key_id, str) else None)
            if key is None:
                raise Unauthenticated("BAD_TOKEN", "the token is signed with a key that its issuer does not publish")
            if header.get("alg") != key.algorithm:
                raise Unauthenticated("BAD_TOKEN", f"the token's alg must be {key.algorithm}, which its key is for")
            claims = jwt.decode(token, key.key, [key.algorithm], audience=self._audience, issuer=self._issuer,
                                leeway=LEEWAY_S, options={"require": ["exp", "iss", "aud", "sub"]})
        except MeshError:
            raise
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("TOKEN_EXPIRED", "the token has expired; get another one") from None
        except (jwt.InvalidAudienceError, jwt.InvalidIssuerError):
            raise PermissionDenied("WRONG_AUDIENCE", "the token is for another audience, or of another issuer"
                                   ) from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated("BAD_TOKEN", "this is no token that its issuer has signed for this mesh") from None
        return "jwt-" + hashlib.sha256(
            f"{self._issuer}\n{claims['sub']}".encode(errors="surrogatepass")).hexdigest()[:16]

    async def close(self) -> None:
        """Give back what it holds."""
        await self._keys.close()
