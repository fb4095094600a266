"""The page's files as a browser gets them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import aiohttp
import pytest

from services.gateway.edges.web import page
from services.gateway.edges.web.door import HttpDoor
from services.gateway.edges.web.socket import Sockets


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    door = HttpDoor("127.0.0.1", 0, page.routes(), Sockets(5.0), ready=lambda: True)
    await door.open()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{door.port}", auto_decompress=False) as session:
        yield session
    await door.close()


async def test_the_page_is_at_the_root_with_a_strict_policy(session: aiohttp.ClientSession) -> None:
    async with session.get("/", headers={"Accept-Encoding": "identity"}) as answer:
        assert answer.status == 200 and answer.content_type == "text/html"
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Permissions-Policy"].startswith("microphone=(self)")
        body = await answer.text()
    assert not re.search(r"<script(?![^>]*src)|\sstyle=|\son\w+=|https?://", body)


@pytest.mark.parametrize("path", [path.relative_to(page.FOLDER).as_posix() for path in page.FOLDER.rglob("*.js")])
async def test_a_module_has_the_type_that_browsers_insist_on(session: aiohttp.ClientSession, path: str) -> None:
    async with session.get(f"/{path}", headers={"Accept-Encoding": "identity"}) as answer:
        assert answer.status == 200 and answer.content_type == "text/javascript"
        body = await answer.read()
    for name in re.findall(rb"(?:from |import\(|new URL\()'([^']+\.js)'", body):  # what it loads is there, too
        target = ((page.FOLDER / path).parent / name.decode()).resolve()
        assert target.is_file(), f"{path} loads {name.decode()}"


async def test_a_browser_that_has_a_file_is_told_so(session: aiohttp.ClientSession) -> None:
    async with session.get("/page.js") as first:
        tag = first.headers["ETag"]
        assert first.headers["Cache-Control"] == "no-cache"
    async with session.get("/page.js", headers={"If-None-Match": tag}) as again:
        assert again.status == 304 and await again.read() == b""
    async with session.get("/page.js", headers={"If-None-Match": '"other"'}) as changed:
        assert changed.status == 200


async def test_text_is_packed_for_those_who_unpack_it(session: aiohttp.ClientSession) -> None:
    async with session.get("/page.js", headers={"Accept-Encoding": "gzip"}) as packed:
        assert packed.headers["Content-Encoding"] == "gzip"
        short = await packed.read()
    async with session.get("/page.js", headers={"Accept-Encoding": "identity"}) as plain:
        assert "Content-Encoding" not in plain.headers
        assert len(await plain.read()) > 2 * len(short)


@pytest.mark.parametrize("path", ["/../web/page.py", "/moshimesh/../../web/page.py", "/moshimesh/", "/index.html",
                                  "/moshimesh/README.md", "/%2e%2e/grpc.py"])
async def test_no_other_file_is_served(session: aiohttp.ClientSession, path: str) -> None:
    async with session.get(path) as answer:
        assert answer.status == 404


def test_the_first_load_is_small() -> None:
    files = [path for path in page.FOLDER.rglob("*") if path.suffix in page.TYPES
             and path.name not in ("words-en.js", "status.html", "status.js")]  # French is the longer one
    assert sum(path.stat().st_size for path in files) < 150_000
