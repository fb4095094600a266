"""URLs of --redis-url: what they mean, and that a wrong one is refused without a word of its secrets."""

from __future__ import annotations

import logging
import re

import pytest

from services.gateway.redis_url import Sentinels, read_redis_url
from services.gateway.store import Store


@pytest.mark.parametrize(("text", "kind", "address", "url"), [
    ("redis://h", "single", "h", "redis://h"),
    ("redis://h:1/2", "single", "h:1/2", "redis://h:1/2"),
    ("redis://h:1/2\n", "single", "h:1/2", "redis://h:1/2"),
    ("rediss://user:pa%23ss@h:1/0?ssl_ca_certs=/ca.pem", "single", "h:1/0",
     "rediss://user:pa%23ss@h:1/0?ssl_ca_certs=/ca.pem"),
    ("redis://:p:@s@h", "single", "h", "redis://:p:@s@h"),
    ("redis://[::1]:6379/0", "single", "[::1]:6379/0", "redis://[::1]:6379/0"),
    ("unix:///run/redis.sock?db=1", "single", "/run/redis.sock", "unix:///run/redis.sock?db=1"),
    ("redis+cluster://:pw@h:1", "cluster", "h:1", "redis://:pw@h:1"),
    ("rediss+cluster://h:1/0", "cluster", "h:1/0", "rediss://h:1/0"),
])
def test_urls(text: str, kind: str, address: str, url: str) -> None:
    read = read_redis_url(text)
    assert (read.kind, read.address, read.url, read.sentinels) == (kind, address, url, None)


def test_a_sentinel_url_has_three_passwords_at_most() -> None:
    read = read_redis_url("rediss+sentinel://me:of%2Fmaster@a:1,b,[::1]:2/calls/3?sentinel_username=you"
                          "&sentinel_password=of%26sentinel&ssl_ca_certs=/ca.pem")
    assert read.sentinels == Sentinels((("a", 1), ("b", 26379), ("::1", 2)), "calls", "you", "of&sentinel")
    assert read.address == "a:1,b:26379,::1:2/calls/3"
    assert read.url == "rediss://me:of%2Fmaster@the-master/3?ssl_ca_certs=%2Fca.pem"
    assert "of" not in repr(read)


SECRETS = ["57#Wc", "57/Wc", "57?Wc", "5%7Wc", "57[Wc", "57]Wc", "57#Wc@x", "Wc%", "57 #Wc"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("url", ["redis://:{}@h:1/0", "rediss://me:{}@h", "redis+cluster://:{}@h:1",
                                 "unix://:{}@/x.sock", "redis+sentinel://:{}@h:1/calls/0", "redis://a:1@h:{}@/0"])
def test_no_message_has_a_part_of_a_secret(url: str, secret: str, caplog: pytest.LogCaptureFixture) -> None:
    """`redis://:57#Wc@h:1/0` once meant localhost, and others were printed by the parser that failed."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ValueError, match=r"--redis-url: .*percent-encode") as caught:
        Store(url.format(secret))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    for part in ("57", "Wc"):
        assert part not in str(caught.value) and part not in caplog.text


@pytest.mark.parametrize(("url", "says"), [
    ("localhost:6379", "begins with one of redis://"), ("http://localhost", "begins with one of redis://"),
    ("", "begins with one of"), ("redis://", "percent-encode"), ("redis:///0", "percent-encode"),
    ("redis://:6379", "percent-encode"), ("redis://h:99999", "percent-encode"), ("redis://h/zero", "the path of redis"),
    ("redis://a:1,b:2", "names one host, got 2"), ("redis+cluster://h:1/1", "a cluster has only 0"),
    ("unix://", "socket"), ("redis://h?decode_responses=true", "decode_responses can't be set"),
    ("rediss+sentinel://h/calls?encoding=x", "encoding can't be set"),
    ("redis+sentinel://localhost/", "name-of-the-master"), ("redis+sentinel://localhost:26379", "name-of-the-master"),
    ("redis+sentinel://localhost/calls/x", "name-of-the-master"), ("redis+sentinel://a:x/calls", "host 1"),
    ("redis+sentinel://a:1,,b/calls", "host 2")])
def test_urls_that_are_none(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        read_redis_url(url)
