"""A client of the edge without any ideas of its own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp


class Client:
    """Sends what it is told to, and keeps what it hears."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, options
        self.heard: list[dict[str, Any]] = []

    async def __aenter__(self) -> Client:
        self._http = aiohttp.ClientSession()
        try:
            self.socket = await self._http.ws_connect(self._url, **self._options)
        except BaseException:
            await self._http.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()
        await self._http.close()

    async def ask(self, type: str, **fields: Any) -> None:
        await self.socket.send_str(json.dumps({"type": type, **fields}))

    async def hear(self, type: str) -> dict[str, Any]:
        """Listen until this comes."""
        while True:
            message = await asyncio.wait_for(self.socket.receive(), 20)
            assert message.type == aiohttp.WSMsgType.TEXT, (message, [one["type"] for one in self.heard])
            self.heard.append(json.loads(message.data))
            if self.heard[-1]["type"] == type:
                return self.heard[-1]

    async def end(self) -> int | None:
        """Listen until the socket is closed; with which code."""
        while True:
            message = await asyncio.wait_for(self.socket.receive(), 20)
            if message.type != aiohttp.WSMsgType.TEXT:
                return self.socket.close_code
            self.heard.append(json.loads(message.data))
