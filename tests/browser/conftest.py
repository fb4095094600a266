"""A real browser in front of a gateway whose model speaks a known voice.

Figures go to $MOSHIMESH_PAGE_JSON, and from there, by bench/sections.py, into docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.gateway import Gateway
from tests.conftest import ROOT
from tests.until import until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MICROPHONE = ROOT / "samples" / "demo.wav"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
         f"--use-file-for-fake-audio-capture={MICROPHONE}%noloop", "--autoplay-policy=no-user-gesture-required",
         "--host-resolver-rules=MAP mesh.test 127.0.0.1"]  # a name that is not localhost, for plain http
# What would leak: audio contexts and microphones that stay open. The gateway counts sockets.
COUNTED = """
  window.contexts = []; window.streams = [];
  const Context = window.AudioContext;
  window.AudioContext = class extends Context { constructor(...a) { super(...a); window.contexts.push(this); } };
  const get = navigator.mediaDevices?.getUserMedia.bind(navigator.mediaDevices);
  if (get) navigator.mediaDevices.getUserMedia = async wanted => {
    if (window.noMicrophone) throw new DOMException('none', window.noMicrophone);
    const stream = await get(wanted);
    window.streams.push(stream);
    return stream;
  };
"""


class Tab:
    """The page in a tab of the browser, with what a test asks of it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))

    async def state(self) -> str:
        state: str = await self.page.evaluate("document.body.dataset.state")
        return state

    async def is_(self, state: str, within_s: float = 20.0) -> None:
        """Wait for a state."""
        async def there() -> bool:
            return await self.state() == state
        await until(there, within_s)

    async def talk(self, record: bool = True) -> None:
        """Press the button, and wait until Moshi listens."""
        await self.page.set_checked("#record", record)
        await self.page.evaluate("document.getElementById('clean').checked = false")  # what is said comes as it is
        await self.page.click("#start")
        await self.is_("live")
        # Every second's statistics and every frame's arrival, from now on.
        await self.page.evaluate("""() => { window.figures = []; window.arrivals = [];
            moshimesh.call.addEventListener('frame', () => arrivals.push(performance.now()));
            moshimesh.call.addEventListener('statistics', ({detail}) => figures.push(detail)); }""")

    async def figures(self) -> list[dict[str, Any]]:
        """The statistics of each second since `talk`."""
        figures: list[dict[str, Any]] = await self.page.evaluate("figures")
        return figures

    async def figures_of(self, seconds: int) -> list[dict[str, Any]]:
        """Talk on until there are so many seconds of statistics."""
        async def enough() -> bool:
            return len(await self.figures()) >= seconds
        await until(enough, 2 * seconds + 20)
        return await self.figures()

    async def words(self) -> list[int]:
        """The numbers of the words that were heard."""
        text = await self.page.inner_text("#captions")
        return [int(number) for number in re.findall(r"w(\d+)", text)]

    async def end(self) -> None:
        await self.page.click("#end")
        await self.is_("ended")

    async def download(self, button: str) -> bytes:
        async with self.page.expect_download() as coming:
            await self.page.click(button)
        path = await (await coming.value).path()
        return await asyncio.to_thread(Path(path).read_bytes)

    async def leaks(self) -> int:
        """Audio contexts and microphones that are open."""
        leaks: int = await self.page.evaluate("""
            contexts.filter(one => one.state !== 'closed').length +
            streams.filter(one => one.active).length""")
        return leaks


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, Any]]:
    """What `make page-check` reports."""
    measured: dict[str, Any] = {}
    yield measured
    if path := os.environ.get("MOSHIMESH_PAGE_JSON"):
        measured["load"] = round(os.getloadavg()[0], 1)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(measured, indent=2) + "\n")


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Any]:
    """Chromium with a microphone that says samples/demo.wav once."""
    playwright_api = pytest.importorskip("playwright.async_api", reason="pip install -r requirements/browser.txt")
    if CHROMIUM is None:
        pytest.skip("no chromium; on Debian: apt-get install chromium")
    async with playwright_api.async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        await running.close()


@pytest.fixture
def slots() -> int:
    """Calls that the gateway has room for."""
    return 4


@pytest.fixture
async def gateway(slots: int) -> AsyncIterator[Gateway]:
    async with Gateway(slots) as gateway:
        yield gateway


@pytest.fixture
async def context(browser: Any, gateway: Gateway) -> AsyncIterator[Any]:
    """A browser's profile that has allowed the microphone. It is closed before the gateway, which waits for calls."""
    context = await browser.new_context(permissions=["microphone"])
    await context.add_init_script(COUNTED)
    yield context
    await context.close()


@pytest.fixture
async def tab(context: Any, gateway: Gateway) -> Tab:
    """The page."""
    return await open_tab(context, gateway.url)


async def open_tab(context: Any, url: str) -> Tab:
    """The page in a new tab."""
    tab = Tab(await context.new_page())
    await tab.page.goto(url)
    return tab
