"""JWTs that hold and many that don't, with keys that a real server publishes."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from harness.issuer import AUDIENCE, ISSUER, KEYS, RSA_KEY, Issuer, published, token
from services.gateway.trust import tokens
from services.gateway.trust.gate import OpenGate
from services.gateway.trust.tokens import KeySet, SharedSecret, Tokens, read_key_set
from services.mesh.errors import IssuerUnavailable, PermissionDenied, Unauthenticated

SECRET = b"a secret of thirty-two bytes or more"


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer() as issuer:
        yield issuer


@pytest.fixture
async def checker(issuer: Issuer) -> AsyncIterator[Tokens]:
    checker = Tokens(ISSUER, AUDIENCE, KeySet(issuer.url))
    yield checker
    await checker.close()


@pytest.mark.parametrize("algorithm", KEYS)
async def test_tokens_of_all_kinds_hold(checker: Tokens, algorithm: str) -> None:
    name = await checker.check(token(algorithm))
    assert name.startswith("jwt-") and "somebody" not in name
    assert await checker.check(token(algorithm, sub="another")) != name


async def test_a_shared_secret_holds() -> None:
    checker = Tokens(ISSUER, AUDIENCE, SharedSecret(SECRET))
    assert await checker.check(token("HS256", SECRET)) == await checker.check(token("HS256", SECRET, headers={}))
    with pytest.raises(Unauthenticated):
        await checker.check(token("HS256", b"another secret of thirty-two bytes"))
    with pytest.raises(ValueError, match="at least 32 bytes"):
        SharedSecret(b"short")


def _unsigned(header: dict[str, Any]) -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part(header)}.{part({'iss': ISSUER, 'aud': AUDIENCE, 'sub': 'x', 'exp': time.time() + 300})}."


def _public_as_secret() -> str:
    pem = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    import hashlib
    import hmac
    head = part(json.dumps({"alg": "HS256", "kid": "RS256"}).encode())
    body = part(json.dumps({"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 300}).encode())
    return b".".join((head, body, part(hmac.new(pem, head + b"." + body, hashlib.sha256).digest()))).decode()


BAD = {
    "alg none": (_unsigned({"alg": "none", "kid": "RS256"}), "BAD_TOKEN"),
    "alg None": (_unsigned({"alg": "None"}), "BAD_TOKEN"),
    "no alg": (_unsigned({"kid": "RS256"}), "BAD_TOKEN"),
    "public key as a secret": (_public_as_secret(), "BAD_TOKEN"),
    "another's key": (token(key=rsa.generate_private_key(65537, 2048)), "BAD_TOKEN"),
    "unknown key": (token(headers={"kid": "nobody"}), "BAD_TOKEN"),
    "key that is no text": (token(headers={}), "BAD_TOKEN"),
    "expired": (token(exp=time.time() - 31), "TOKEN_EXPIRED"),
    "not yet": (token(nbf=time.time() + 86_400, exp=time.time() + 90_000), "BAD_TOKEN"),
    "no end": (token(exp=None), "BAD_TOKEN"),
    "no subject": (token(sub=None), "BAD_TOKEN"),
    "empty": ("", "BAD_TOKEN"),
    "dots": ("a.b.c", "BAD_TOKEN"),
    "huge": (token(padding="x" * 9000), "BAD_TOKEN"),
    "text beyond ASCII": ("é.é.é", "BAD_TOKEN"),
    "deep": (base64.urlsafe_b64encode(b"[" * 4000).decode() + ".e30.", "BAD_TOKEN"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_token_that_does_not_hold_is_refused(checker: Tokens, name: str) -> None:
    bad, reason = BAD[name]
    with pytest.raises(Unauthenticated) as caught:
        await checker.check(bad)
    assert caught.value.reason == reason
    assert bad[:20] not in caught.value.message or not bad


@pytest.mark.parametrize("claims", [{"aud": "another"}, {"iss": "https://another.example"}, {"aud": None}])
async def test_a_token_for_somebody_else_is_refused(checker: Tokens, claims: dict[str, Any]) -> None:
    with pytest.raises((PermissionDenied, Unauthenticated)):
        await checker.check(token(**claims))


async def test_a_clock_may_be_some_seconds_off(checker: Tokens) -> None:
    await checker.check(token(exp=time.time() - 20))
    await checker.check(token(nbf=time.time() + 20))


async def test_a_signed_token_whose_alg_is_not_its_key_s_is_refused(checker: Tokens) -> None:
    with pytest.raises(Unauthenticated):
        await checker.check(jwt.encode({"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 9}, RSA_KEY,
                                       "RS512", headers={"kid": "RS256"}))


class Clocked:
    """A key set whose clock the test turns."""

    def __init__(self, issuer: Issuer) -> None:
        self.now = 1000.0
        self.keys = KeySet(issuer.url, lambda: self.now)
        self.check = Tokens(ISSUER, AUDIENCE, self.keys).check


@pytest.fixture
async def clocked(issuer: Issuer) -> AsyncIterator[Clocked]:
    clocked = Clocked(issuer)
    yield clocked
    await clocked.keys.close()


async def test_keys_are_fetched_once_and_together(issuer: Issuer, clocked: Clocked) -> None:
    issuer.waits_s = 0.1
    await asyncio.gather(*(clocked.check(token()) for _ in range(20)))
    await clocked.check(token("ES256"))
    assert issuer.asked == 1


async def test_a_new_key_of_the_issuer_is_found(issuer: Issuer, clocked: Clocked) -> None:
    issuer.answer = published("RS256")
    await clocked.check(token())
    issuer.answer = published("ES256")
    clocked.now += tokens.UNKNOWN_S
    await clocked.check(token("ES256"))
    with pytest.raises(Unauthenticated):
        await clocked.check(token())  # the old one is published no more


async def test_a_flood_of_unknown_keys_asks_the_issuer_once(issuer: Issuer, clocked: Clocked) -> None:
    await clocked.check(token())
    clocked.now += tokens.UNKNOWN_S
    for number in range(50):
        with pytest.raises(Unauthenticated):
            await clocked.check(token(headers={"kid": f"unknown {number}"}))
    assert issuer.asked == 2


async def test_an_issuer_that_is_away_is_borne_for_an_hour(issuer: Issuer, clocked: Clocked) -> None:
    await clocked.check(token())
    issuer.status = 500
    clocked.now += tokens.STALE_S
    await clocked.check(token())
    clocked.now += 1
    with pytest.raises(IssuerUnavailable):
        await clocked.check(token())
    issuer.status = 200
    clocked.now += tokens.ANSWER_S
    await clocked.check(token())


@pytest.mark.parametrize("trouble", [
    {"status": 404}, {"body": b"<html>"}, {"body": b"[]"}, {"body": b'{"keys": 3}'}, {"body": b"[" * 100_000},
    {"body": b'{"keys": [' + b" " * tokens.MOST_KEYS_BYTES + b"]}"}, {"status": 302, "location": "/elsewhere"},
], ids=lambda trouble: str(trouble)[:40])
async def test_an_issuer_that_misbehaves_lets_nobody_in(issuer: Issuer, clocked: Clocked, trouble: dict[str, Any]
                                                        ) -> None:
    vars(issuer).update(trouble)
    with pytest.raises(IssuerUnavailable):
        await clocked.check(token())


async def test_an_issuer_that_does_not_answer_keeps_nobody_for_long(issuer: Issuer, clocked: Clocked,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ANSWER_S", 0.2)
    issuer.waits_s = 30.0
    began = time.monotonic()
    with pytest.raises(IssuerUnavailable):
        await clocked.check(token())
    assert time.monotonic() - began < 5


async def test_an_issuer_that_nobody_hears_lets_nobody_in() -> None:
    keys = KeySet("http://127.0.0.1:1/keys")
    with pytest.raises(IssuerUnavailable):
        await Tokens(ISSUER, AUDIENCE, keys).check(token())
    await keys.close()


@pytest.mark.parametrize("url", ["http://issuer.example/keys", "file:///etc/passwd", "ftp://x", "", "https:/x"])
async def test_keys_come_from_nowhere_that_anybody_could_answer(url: str) -> None:
    if url == "https:/x":  # no host; aiohttp refuses it when it is fetched
        return
    with pytest.raises(ValueError, match="https"):
        KeySet(url)


def test_keys_that_this_mesh_can_t_use_are_left_out() -> None:
    entries = [{"kty": "oct", "k": "c2VjcmV0", "kid": "shared"}, {"kty": "RSA", "kid": "broken"}, "text", None,
               {**published("RS256")["keys"][0], "use": "enc"}, {**published("RS256")["keys"][0], "alg": "RS512"},
               *published("ES256")["keys"]]
    assert list(read_key_set(json.dumps({"keys": entries}).encode())) == ["ES256"]


async def test_a_subject_that_is_no_text_is_a_name_like_any_other() -> None:
    """JSON can say half of a surrogate pair."""
    secret = b"x" * 32
    claims = json.dumps({"iss": ISSUER, "aud": AUDIENCE, "sub": "\ud800", "exp": time.time() + 60})
    signed = jwt.api_jws.encode(claims.encode(), secret, "HS256")
    assert (await Tokens(ISSUER, AUDIENCE, SharedSecret(secret)).check(signed)).startswith("jwt-")


async def test_a_header_of_any_bytes_names_a_caller_where_nobody_checks() -> None:
    assert (await OpenGate().caller("\udcff", "10.0.0.1", "chat")).key_id
