"""Credentials, handles and traces in every shape: a caller, a refusal, or nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from services.gateway.sessions.sealing import Handle
from services.gateway.trust.keys import hash_of
from services.gateway.trust.tokens import read_key_set
from services.mesh.telemetry import read_traceparent
from tests.fuzz.budget import fuzz
from tests.fuzz.inputs import TEXTS, mutated, values, written
from tests.fuzz.parsers import SECRET, SEPARATOR, handles, jwts, key_files, key_sets, open_gate, traceparents

CLAIMS = {"iss": "issuer", "aud": "mesh", "sub": "x", "exp": 4_000_000_000}
_KEYS = [json.loads(of(key.public_key())) | {"kid": "a"} for of, key in (
    (ECAlgorithm.to_jwk, ec.generate_private_key(ec.SECP256R1())), (OKPAlgorithm.to_jwk,
                                                                    ed25519.Ed25519PrivateKey.generate()),
    (RSAAlgorithm.to_jwk, rsa.generate_private_key(65537, 2048)))]
_FILE = json.dumps({"keys": [{"name": "shop", "sha256": hash_of("mm_x"), "calls": 3}]}).encode()
_HANDLE = Handle.new().text
_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ANY_TEXT = st.text(max_size=60).map(str.encode)


def signed(header: str, claims: str) -> str:
    """A token that our own secret has signed, whatever it says."""
    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head = ".".join(part(text.encode(errors="surrogatepass")) for text in (header, claims))
    return f"{head}.{part(hmac.new(SECRET, head.encode(), hashlib.sha256).digest())}"


def some(known: dict[str, object]) -> st.SearchStrategy[str]:
    """This object with some of its values replaced, as JSON."""
    names = st.sampled_from([*known, "nbf", "iat", "jti", "kid", "crit", "b64", "alg"])
    return st.dictionaries(names, values(("a",)), max_size=3).map(lambda other: written({**known, **other}))


@fuzz("JWTs", data=st.one_of(st.builds(signed, some({"alg": "HS256"}), some(CLAIMS)).map(str.encode),
                             mutated(signed('{"alg":"HS256"}', json.dumps(CLAIMS)).encode())))
def test_a_token_is_a_name_or_a_refusal(data: bytes) -> None:
    jwts(data)


@fuzz("JWKS", data=st.one_of(
    st.tuples(st.sampled_from(_KEYS), st.dictionaries(st.sampled_from(
        ["kty", "crv", "x", "y", "n", "e", "d", "use", "alg", "kid", "oth"]), values(), max_size=3)).map(
            lambda both: written({"keys": [{**both[0], **both[1]}]}).encode()),
    mutated(json.dumps({"keys": _KEYS}).encode()), values(("keys", "kty")).map(lambda value: written(value).encode())))
def test_a_key_set_is_keys_or_a_value_error(data: bytes) -> None:
    key_sets(data)


@fuzz("key files", data=st.one_of(mutated(_FILE), values(("keys", "name", "sha256", "calls")).map(
    lambda value: written(value).encode())))
def test_a_file_of_keys_is_keys_or_a_value_error(data: bytes) -> None:
    key_files(data)


@fuzz("credentials at an open gate", data=st.one_of(st.binary(max_size=60), ANY_TEXT))
def test_any_bytes_name_a_caller_where_everybody_may_call(data: bytes) -> None:
    open_gate(data)


@fuzz("resume handles", text=st.one_of(mutated(_HANDLE.encode()), ANY_TEXT), sealed=st.binary(max_size=60))
def test_a_handle_is_one_or_unknown(text: bytes, sealed: bytes) -> None:
    handles(text + SEPARATOR + sealed)


@fuzz("traceparents", data=st.one_of(st.sampled_from(TEXTS).map(str.encode), mutated(_TRACEPARENT.encode()), ANY_TEXT))
def test_a_traceparent_names_a_span_or_nothing(data: bytes) -> None:
    traceparents(data)


def test_the_seeds_hold() -> None:
    """Else the fuzzers would only try what is refused at once."""
    keys = [one | {"kid": str(number)} for number, one in enumerate(_KEYS)]
    assert len(read_key_set(json.dumps({"keys": keys}).encode())) == 3
    assert read_traceparent(_TRACEPARENT) and Handle(_HANDLE)
