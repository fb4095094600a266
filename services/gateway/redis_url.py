"""Where Redis is: the URL of --redis-url, taken apart.

No message has any part of the URL but its scheme, since a password that is not percent-encoded may end up in any part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

SENTINEL_PORT = 26379

_KINDS: dict[str, Literal["single", "cluster", "sentinel"]] = {
    "redis": "single", "rediss": "single", "unix": "single", "redis+cluster": "cluster", "rediss+cluster": "cluster",
    "redis+sentinel": "sentinel", "rediss+sentinel": "sentinel"}
_NODE = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::(\d{1,5}))?")
_FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_OURS = {"decode_responses", "encoding", "encoding_errors"}  # options of the redis package
_ENCODE = ("percent-encode what is special in user and password ('#' as %23, '/' as %2F, '?' as %3F, '@' as %40, "
           "'%' as %25)")


@dataclass(frozen=True)
class Sentinels:
    """Who knows which server is the master."""

    nodes: tuple[tuple[str, int], ...]
    """Host and port of each."""
    master: str
    """The name under which they know it."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class RedisUrl:
    """A URL that is right."""

    kind: Literal["single", "cluster", "sentinel"]
    address: str
    """Where it is, for messages: hosts and database, without user, password and options."""
    url: str = field(repr=False)
    """As the redis package takes it. For Sentinel its host means nothing; the rest is for the master."""
    sentinels: Sentinels | None = None

    def files_changed_at(self) -> list[int]:
        """When each of the files was written that the URL names for TLS. Raises ValueError for one that is not there.
        """
        found = []
        for option, value in parse_qsl(urlsplit(self.url).query):
            if option in _FILES:
                try:
                    found.append(Path(value).stat().st_mtime_ns)
                except OSError as error:
                    raise ValueError(f"--redis-url: the file of {option} can't be read ({error.strerror})") from None
        return found


def read_redis_url(text: str) -> RedisUrl:
    """Take a URL of --redis-url apart. Raises ValueError, in words that tell nothing of its secrets."""
    scheme, separator, rest = text.strip().partition("://")
    if not separator or scheme not in _KINDS:
        raise ValueError(f"--redis-url: a URL begins with one of {', '.join(f'{known}://' for known in _KINDS)}")
    kind, (base, _, _) = _KINDS[scheme], scheme.partition("+")
    try:
        parts = urlsplit(f"{base}://{rest}")
    except ValueError:  # its message repeats parts of the URL
        raise ValueError(f"--redis-url: this is no {scheme}:// URL; {_ENCODE}") from None
    if "#" in rest or "@" in parts.path + parts.query or re.search("%(?![0-9a-fA-F]{2})", rest):
        raise ValueError(f"--redis-url: the password, or another part, has a character that ends it early; {_ENCODE}")
    if taken := _OURS & dict(parse_qsl(parts.query)).keys():
        raise ValueError(f"--redis-url: {', '.join(sorted(taken))} can't be set: what a gateway keeps is binary")
    if base == "unix":
        return _unix(parts, text.strip())
    user, at, hosts = parts.netloc.rpartition("@")
    nodes = _nodes(hosts, SENTINEL_PORT if kind == "sentinel" else 6379)
    if kind == "sentinel":
        return _of_sentinels(parts, nodes, user + at)
    database = parts.path.strip("/")
    if len(nodes) != 1:
        raise ValueError(f"--redis-url: {scheme}:// names one host, got {len(nodes)}")
    if not re.fullmatch(r"\d*" if kind == "single" else "0?", database):
        raise ValueError(f"--redis-url: the path of {scheme}:// is the number of a database"
                         f"{'; a cluster has only 0' if kind == 'cluster' else ''}")
    return RedisUrl(kind, f"{hosts}{'/' + database if database else ''}", parts.geturl())


def _unix(parts: SplitResult, url: str) -> RedisUrl:
    if not parts.path.strip("/"):
        raise ValueError("--redis-url: unix:// needs the path of a socket, as in unix:///run/redis.sock")
    return RedisUrl("single", parts.path, url)


def _of_sentinels(parts: SplitResult, nodes: tuple[tuple[str, int], ...], user: str) -> RedisUrl:
    master, _, database = parts.path.strip("/").partition("/")
    if not master or not re.fullmatch(r"\d*", database):
        raise ValueError(f"--redis-url: {parts.scheme}+sentinel:// needs host:port,host:port/name-of-the-master, and "
                         "perhaps the number of a database after it")
    options = dict(parse_qsl(parts.query))
    sentinels = Sentinels(nodes, master, options.pop("sentinel_username", None), options.pop("sentinel_password", None))
    url = f"{parts.scheme}://{user}the-master/{database or 0}?{urlencode(options)}"
    hosts = ",".join(f"{host}:{port}" for host, port in nodes)
    return RedisUrl("sentinel", f"{hosts}/{master}/{database or 0}", url, sentinels)


def _nodes(hosts: str, port: int) -> tuple[tuple[str, int], ...]:
    nodes = []
    for number, text in enumerate(hosts.split(","), 1):
        found = _NODE.fullmatch(text.strip())
        if found is None or int(found[2] or port) > 65535:
            raise ValueError(f"--redis-url: host {number} is not host or host:port; {_ENCODE}")
        nodes.append((found[1].strip("[]"), int(found[2] or port)))
    return tuple(nodes)
