"""The page at `/`, the operator's at `/status`, and the client module: files from memory, and the headers that keep
them safe.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ETag, web

FOLDER = Path(__file__).resolve().parent.parent / "page"

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}

PATHS = {"index.html": "/", "status.html": "/status"}  # of the others: their names

# Nothing from elsewhere, nothing inline, in nobody's frame: a page with a microphone is worth attacking. The canvas
# and the downloads need no more than this.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A browser asks each time whether its copy is still good: after an update nobody has half of the old page.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True)
class File:
    """A file as it is sent."""

    body: bytes
    packed: bytes
    """The body with gzip."""
    content_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> File:
        """Read a file of the page."""
        body = path.read_bytes()
        return cls(body, gzip.compress(body, mtime=0), TYPES[path.suffix], hashlib.sha256(body).hexdigest()[:32])

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a GET or HEAD: 304 when the browser has this one."""
        tags = request.if_none_match or ()
        if any(tag.value in (self.etag, "*") for tag in tags):
            response = web.Response(status=304, headers=HEADERS)
        elif "gzip" in request.headers.get("Accept-Encoding", ""):
            response = web.Response(body=self.packed, headers={
                **HEADERS, "Content-Type": self.content_type, "Content-Encoding": "gzip"})
        else:
            response = web.Response(body=self.body, headers={**HEADERS, "Content-Type": self.content_type})
        response.etag = ETag(self.etag, is_weak=True)  # one for the body, packed or not
        return response


def routes() -> list[web.RouteDef]:
    """A route for each file of the page. No other path leads to a file."""
    found = []
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in TYPES:
            name = path.relative_to(FOLDER).as_posix()
            found.append(web.get(PATHS.get(name, f"/{name}"), File.read(path).answer))
    return found
